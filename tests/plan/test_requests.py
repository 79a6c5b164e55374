"""A task's requests to remote storage: each by its name, and the number that `backend_limit` relies on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger.plan.requests import connections, requests_of_rank, requests_per_start
from stagger.rundir.run_folder import RunFolder, StageInput
from tests.conftest import Cli, PipelineFiles, documents, jsonl, until
from tests.kit.records import spec
from tests.kit.s3_server import S3Server, running

ENGINES = ["s3fs", "obstore"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    """A server, and the folder whose files it serves as objects of the bucket `input`."""
    folder = tmp_path_factory.mktemp("objects")
    for index in range(12):
        (folder / f"{index:02d}.jsonl").write_bytes(jsonl(documents(index * 50, 50)))
    with running("--serve", f"input={folder}", "--bucket", "runs") as server:
        yield server, folder


@pytest.fixture
def on_s3(cli: Cli, storage: tuple[S3Server, Path], pipeline_file: PipelineFiles, tmp_path: Path) -> Any:
    """Writes a pipeline file with run directory, input and output on S3, under a prefix of this test alone."""
    server, _ = storage
    cli.env |= {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    place = f"s3://runs/{tmp_path.name}"

    def make(engine: str, **more: Any) -> Path:
        places = {"run_dir": f"{place}/run", "source": "s3://input", "output": f"{place}/output"}
        return pipeline_file(storage_options={"s3": {"engine": engine}}, **{**places, **more})

    return make


def settings_of(server: S3Server, tmp_path: Path) -> dict[str, Any]:
    import s3fs

    files = s3fs.S3FileSystem(endpoint_url=server.endpoint, key="key", secret="secret", skip_instance_cache=True)
    record = json.loads(files.cat(f"runs/{tmp_path.name}/run/launches/1/launch.json"))
    found: dict[str, Any] = json.loads(record["settings"])
    return found


def task(cli: Cli, settings: dict[str, Any], rank: int) -> subprocess.Popen[bytes]:
    """Start a task as a job script does."""
    command = [sys.executable, "-I", "-m", "stagger.task", json.dumps(settings), str(rank)]
    return subprocess.Popen(command, env=cli.env, cwd=cli.folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_makes_five_control_requests_one_for_each_shard_and_one_for_its_output(
    cli: Cli, storage: tuple[S3Server, Path], on_s3: Any, tmp_path: Path, engine: str
) -> None:
    """No LIST, no HEAD, no HeadBucket; the launch counts exactly these requests."""
    server, _ = storage
    file = on_s3(engine)
    cli("launch", file, "--limit", 1, check=0)
    settings = settings_of(server, tmp_path)
    server.reset()
    assert task(cli, settings, 1).wait(timeout=120) == 0
    place, plan = f"{tmp_path.name}/run", settings["fingerprint"]
    log = [(kind, key) for kind, key, _, status in server.log() if status in (200, 206)]
    assert [*log[:2], *sorted(log[2:5]), *log[5:]] == [  # The shards are in flight together.
        ("GetObject", f"{place}/plan/{plan}"),
        ("GetObject", f"{place}/plan/{plan}"),
        ("GetObject", "01.jsonl"),
        ("GetObject", "05.jsonl"),
        ("GetObject", "09.jsonl"),
        ("PutObject", f"{place}/commits/00001.1.json"),
        ("PutObject", f"{tmp_path.name}/output/00001.jsonl.zst"),
        ("PutObject", f"{place}/completions/00001.json"),
        ("PutObject", f"{place}/logs/00001/1.log"),
    ]
    assert len(server.log()) == len(log)
    (counted,) = cli("plan", file, "--json", check=0).json["plans"]
    assert counted["requests"] == len(log)


def test_a_rank_that_commits_shard_by_shard_writes_its_progress_too(
    cli: Cli, storage: tuple[S3Server, Path], on_s3: Any, tmp_path: Path
) -> None:
    server, _ = storage
    file = on_s3("obstore", commit="shard")
    text = json.loads(file.read_text())
    text["pipeline"][-1]["write_jsonl"]["filename"] = "{stem}"
    file.write_text(json.dumps(text))
    cli("launch", file, "--limit", 1, check=0)
    settings = settings_of(server, tmp_path)
    server.reset()
    assert task(cli, settings, 1).wait(timeout=120) == 0
    keys = [key for _, key, _, _ in server.log()]
    assert keys.count(f"{tmp_path.name}/run/progress/00001.json") == 2
    (counted,) = cli("plan", file, "--json", check=0).json["plans"]
    assert counted["requests"] == len(keys) == 15


SCRIPT = """
from stagger import LocalExecutor
from stagger import ReadJsonl
from stagger import WriteJsonl
if __name__ == "__main__":
    steps = [ReadJsonl("s3://input"), lambda data, rank, world_size: data, WriteJsonl("{place}/output")]
    LocalExecutor(steps, run_dir="{place}/run", tasks=4, workers=1).run(limit=1)
"""


def test_steps_that_are_python_objects_are_one_request_more(
    cli: Cli, storage: tuple[S3Server, Path], on_s3: Any, tmp_path: Path
) -> None:
    server, _ = storage
    on_s3("s3fs")
    (tmp_path / "script.py").write_text(SCRIPT.format(place=f"s3://runs/{tmp_path.name}"))
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=cli.env, check=True, timeout=120)
    settings = settings_of(server, tmp_path)
    server.reset()
    assert task(cli, settings, 1).wait(timeout=120) == 0
    log = [(kind, key) for kind, key, _, _ in server.log()]
    assert ("GetObject", f"{tmp_path.name}/run/launches/1/pipeline.pkl") in log
    options = {"s3": {"endpoint_url": server.endpoint, "key": "key", "secret": "secret"}}
    _, record = RunFolder.open(f"s3://runs/{tmp_path.name}/run", options)
    (stage,) = record.spec.stages
    assert requests_per_start(record.spec, stage, record.inputs[stage.name]) == len(log) == 10


@pytest.mark.parametrize("engine", ENGINES)
def test_a_long_task_starts_with_what_its_read_ahead_holds(cli: Cli, on_s3: Any, tmp_path: Path, engine: str) -> None:
    long = tmp_path / "long"
    long.mkdir()
    for index in range(10):
        data = jsonl([{"text": os.urandom(2000).hex(), "id": f"{index}-{i}"} for i in range(650)])  # 2.6 MB.
        (long / f"{index:02d}.jsonl").write_bytes(data)
    with running("--serve", f"long={long}", "--bucket", "runs") as slow:
        cli.env["AWS_ENDPOINT_URL"] = slow.endpoint
        flag = tmp_path / "flag"
        steps = ({"my_steps:hold": {"flag": str(flag)}},)
        file = on_s3(engine, source="s3://long", tasks=1, read_ahead_mb=6, steps=steps)
        (counted,) = cli("plan", file, "--json", check=0).json["plans"]
        assert counted["requests"] == 4  # The plan twice, and the two shards that 6 MB hold.
        launch = cli.start("launch", file)
        until((tmp_path / "flag-0").exists, "the task to wait for the flag")
        keys = until(lambda: keys_read(slow) if len(keys_read(slow)) >= 2 else None, "the read-ahead to fill")
        assert sorted(keys) == ["00.jsonl", "01.jsonl"]
        flag.touch()
        assert launch.wait(timeout=120) == 0
        launch.communicate()
        assert len(keys_read(slow)) == 10


def keys_read(server: S3Server) -> list[str]:
    return [key for kind, key, _, _ in server.log() if kind == "GetObject" and key.endswith(".jsonl")]


def test_a_job_makes_the_requests_of_all_ranks_that_it_runs_at_once() -> None:
    """Each rank has four shards of 12 MB, of which 30 MB are read ahead: two reads of the plan, and two shards."""
    planned = StageInput(bytes=64 * 48 * 10**6, remote_shards=64 * 4, remote_outputs=64)
    packed = {"type": "slurm", "ranks_per_job": 32}

    def requests(**executor: Any) -> int:
        run = spec({**packed, **executor}, "only")
        stage = run.stages[0].model_copy(update={"tasks": 64})
        run = run.model_copy(update={"run_dir": "s3://bucket/run", "read_ahead_mb": 30})
        return requests_per_start(run, stage, planned)

    assert requests() == 4
    assert requests(ranks_at_once=8) == 8 * 4
    assert requests(ranks_at_once=8, nodes_per_job=2) == 16 * 4
    assert requests(ranks_at_once="auto") == 32 * 4  # How many it will be is unknown yet.


def test_large_shards_count_by_their_ranges_unless_the_share_of_a_limit_is_small() -> None:
    """Two shards of 200 MB a rank: 24 ranges each, of which 64 MB hold 7."""
    run = spec({"type": "slurm"}, "only").model_copy(update={"run_dir": "s3://bucket/run"})
    read = run.stages[0].pipeline[0].model_copy(update={"params": {"path": "s3://bucket/input"}})
    stage = run.stages[0].model_copy(update={"tasks": 10, "pipeline": [read]})
    large = StageInput(bytes=20 * 200 * 10**6, remote_shards=20)
    small = StageInput(bytes=20 * 50_000, remote_shards=20)
    assert requests_of_rank(run, stage, large) == 5 + 2 * 24
    assert requests_per_start(run, stage, large) == 2 + 7
    assert requests_per_start(run, stage, large, share=2.0) == 2 + 1
    assert requests_per_start(run, stage, small) == 5 + 2
    assert (connections(run, stage, large), connections(run, stage, small)) == (7, 2)
    many = StageInput(bytes=20_000 * 50_000, remote_shards=20_000)
    assert requests_per_start(run, stage, many) == 2 + 64 * 10**6 // 50_000
    assert connections(run, stage, many) == 32
    local = stage.model_copy(update={"pipeline": run.stages[0].pipeline})
    assert connections(run, local, StageInput()) == 1


def test_packed_short_ranks_count_together_and_outputs_by_shard_too(cli: Cli, on_s3: Any) -> None:
    file = on_s3("obstore", executor={"type": "slurm", "ranks_per_job": 2})
    (counted,) = cli("plan", file, "--json", check=0).json["plans"]
    assert (counted["jobs"], counted["requests"]) == (2, 18)
    file = on_s3("obstore", run_dir="run", name="by-shard")
    text = json.loads(file.read_text())
    text["pipeline"][-1]["write_jsonl"]["filename"] = "{stem}.jsonl"
    file.write_text(json.dumps(text))
    (counted,) = cli("plan", file, "--json", check=0).json["plans"]
    assert counted["requests"] == 6  # Three shards with one output each; the run directory is local.
