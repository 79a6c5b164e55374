"""Runs on a store that throttles, breaks off and loses responses: complete data, or a failed rank with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagger.storage.storage import Storage
from tests.conftest import ROOT, Cli, PipelineFiles, contents, read_jsonl, until
from tests.kit.runs import counts, status
from tests.kit.s3_server import S3Server
from tests.s3.conftest import ENGINES, THREE_IN_TEN, credentials


@pytest.fixture
def s3_cli(cli: Cli, s3: S3Server) -> Cli:
    cli.env.update(credentials(s3))
    return cli


def load(shards: Path) -> None:
    storage = Storage()
    for path in sorted(shards.iterdir()):
        storage.write(f"s3://data/input/{path.name}", path.read_bytes())


#: Runs many ranks of a run in one process, with short waits between retries.
MANY_RANKS = (
    "import sys, stagger.backoff as r, stagger.task.__main__ as t\n"
    "r.WAITS_S[:] = [0.01]; sys.exit(t.main(sys.argv[1:]))"
)


def test_a_hundred_ranks_with_three_requests_in_ten_failing_write_the_same_bytes(
    s3_cli: Cli, s3: S3Server, shards: Path, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """Each rank reads its own copy of the same shards, with different faults (drawn by key)."""
    copies = 50
    s3_cli("launch", pipeline_file("undisturbed", tasks=1), check=0)
    wanted = contents(tmp_path / "undisturbed-output")["00000.jsonl.zst"]
    storage = Storage({"s3": {"engine": "obstore"}})
    for path in sorted(shards.iterdir()):
        stem, dot, endings = path.name.partition(".")
        for copy in range(copies):  # Round robin gives each rank one copy of each shard.
            storage.write(f"s3://data/copies/{stem}-{copy:02d}{dot}{endings}", path.read_bytes())
    s3.set_faults(**THREE_IN_TEN, seed=6)
    s3.reset()
    jobs = []
    for engine in ENGINES:
        options = {"s3": {"engine": engine}}
        file = on_s3(pipeline_file, engine, source="s3://data/copies", tasks=copies, storage_options=options)
        s3_cli("launch", file, "--limit", 1, check=0)
        settings = json.loads(storage.read(f"s3://out/{engine}/run/launches/1/launch.json"))["settings"]
        jobs.append([sys.executable, "-c", MANY_RANKS, settings, f"0-{copies - 1}"])
    environment = {**s3_cli.env, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(job, env=environment, stderr=subprocess.PIPE) for job in jobs]
    for process in running:
        assert process.communicate(timeout=280)[1] == b""
        assert process.returncode == 0
    stats = s3.stats()
    assert sum(stats["faults"].values()) / sum(stats["requests"].values()) > 0.2
    assert stats["open_uploads"] == 0
    s3.set_faults()
    for engine in ENGINES:
        records = [
            json.loads(data or b"")
            for data in storage.read_many(
                [f"s3://out/{engine}/run/completions/{rank:05d}.json" for rank in range(copies)]
            )
        ]
        assert {(record["records_in"], record["records_out"]) for record in records} == {(600, 600)}
        assert sum(sum(record["retried"]["requests"].values()) for record in records) > 250
        outputs = [f"s3://out/{engine}/output/{rank:05d}.jsonl.zst" for rank in range(copies)]
        assert [entry.name for entry in storage.list(f"s3://out/{engine}/output")] == [
            path.rpartition("/")[2] for path in outputs
        ]
        assert set(storage.read_many(outputs)) == {wanted}


def on_s3(pipeline_file: PipelineFiles, name: str, **more: Any) -> Path:
    folder = f"s3://out/{name}"
    options = {"source": "s3://data/input", "output": f"{folder}/output", "run_dir": f"{folder}/run"}
    return pipeline_file(name, **{**options, **more})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_makes_one_request_for_each_shard_and_output_and_four_of_its_own(
    s3_cli: Cli, s3: S3Server, shards: Path, pipeline_file: PipelineFiles, engine: str
) -> None:
    load(shards)
    options = {"s3": {"engine": engine}}
    s3_cli("launch", on_s3(pipeline_file, f"requests-{engine}", storage_options=options), "--limit", 1, check=0)
    settings = json.loads(Storage().read(f"s3://out/requests-{engine}/run/launches/1/launch.json"))["settings"]
    s3.reset()
    subprocess.run([sys.executable, "-m", "stagger.task", settings, "1"], env=s3_cli.env, check=True, timeout=60)
    asked = [(kind, key.rpartition("/")[0]) for kind, key, _, _ in s3.log()]
    run = f"requests-{engine}/run"
    assert sorted(asked) == sorted(
        [
            *[("GetObject", f"{run}/plan")] * 2,
            *[("GetObject", "input")] * 3,
            ("PutObject", f"requests-{engine}/output"),
            ("PutObject", f"{run}/completions"),
            ("PutObject", f"{run}/logs/00001"),
        ]
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_killed_in_the_middle_of_an_upload_leaves_nothing(
    s3_cli: Cli, s3: S3Server, pipeline_file: PipelineFiles, tmp_path: Path, engine: str
) -> None:
    """90 MB exceed one PUT: the task is killed during a multipart upload, and the end of the stage aborts it."""
    flag = tmp_path / "flag"
    content = {
        "name": "killed",
        "run_dir": f"s3://out/killed-{engine}/run",
        "storage_options": {"s3": {"engine": engine}},
        "pipeline": [
            {"my_steps:large": {"flag": str(flag)}},
            {"write_jsonl": {"path": f"s3://out/killed-{engine}/output", "compression": None}},
        ],
    }
    file = tmp_path / "killed.json"
    file.write_text(json.dumps(content))
    launched = s3_cli.start("launch", file)
    until(flag.exists, "the task to have written 90 MB")
    assert s3.stats()["open_uploads"] == 1
    subprocess.run(["kill", "-KILL", flag.read_text()], check=True)
    assert launched.wait(timeout=60) == 1
    assert s3.stats()["open_uploads"] == 0
    assert Storage().list(f"s3://out/killed-{engine}/output") == []
    assert Storage().list(f"s3://out/killed-{engine}/run/uploads") == []
    s3_cli("retry", f"s3://out/killed-{engine}/run", check=0)
    (entry,) = Storage().list(f"s3://out/killed-{engine}/output")
    assert entry.size > 100 * 10**6
    assert Storage().list(f"s3://out/killed-{engine}/run/uploads") == []


def test_an_upload_that_fails_for_good_leaves_nothing_and_says_so(
    s3_cli: Cli, s3: S3Server, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    content = {
        "name": "refused",
        "run_dir": str(tmp_path / "refused"),
        "retry_seconds": 0.5,
        "pipeline": [
            {"my_steps:large": {"flag": str(flag)}},
            {"write_jsonl": {"path": "s3://out/refused/output", "compression": None}},
        ],
    }
    file = tmp_path / "refused.json"
    file.write_text(json.dumps(content))
    s3.set_faults(p_503=1.0, only=["UploadPart"])
    s3_cli("launch", file, check=1)
    failure = json.loads((tmp_path / "refused" / "failures" / "00000.1.json").read_text())
    assert failure["kind"] == "StorageError"
    assert "s3://out/refused/output/00000.jsonl: " in failure["error"]
    assert "throttled; retries exhausted" in failure["error"]
    assert failure["retried"]["requests"]["throttled"] >= 1
    assert s3.stats()["open_uploads"] == 0
    assert Storage().list("s3://out/refused/output") == []


def test_an_object_replaced_after_the_plan_fails_its_rank_alone(
    s3_cli: Cli, s3: S3Server, shards: Path, pipeline_file: PipelineFiles
) -> None:
    load(shards)
    file = on_s3(pipeline_file, "replaced")
    s3_cli("launch", file, "--limit", 1, check=0)
    old = Storage().read("s3://data/input/shard-03.jsonl")
    Storage().write("s3://data/input/shard-03.jsonl", old.replace(b"document", b"DOCUMENT"))
    said = s3_cli("launch", file, check=2).err
    assert "input: shard-03.jsonl is changed" in said
    s3_cli("retry", "s3://out/replaced/run", check=1)
    assert counts(status(s3_cli, "s3://out/replaced/run")) == (3, 1, 0, 0)
    logs = s3_cli("logs", "s3://out/replaced/run", "--failed", check=0).out
    assert "s3://data/input/shard-03.jsonl, record 1, byte 0: the object has been replaced since the plan" in logs


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("lie", "status", "said"),
    [
        (
            "no-conditions",
            2,
            "the store ignores conditional writes (If-None-Match), so nothing would keep two launches",
        ),
        ("no-create", 1, "the store has no conditional writes (If-None-Match), which keep two launches"),
    ],
)
def test_a_store_without_conditional_writes_holds_no_run_directory(
    s3_cli: Cli,
    s3: S3Server,
    shards: Path,
    pipeline_file: PipelineFiles,
    tmp_path: Path,
    engine: str,
    lie: str,
    status: int,
    said: str,
) -> None:
    load(shards)
    s3.set_faults(lie=lie)
    options = {"s3": {"engine": engine}}
    err = s3_cli("launch", on_s3(pipeline_file, f"{lie}-{engine}", storage_options=options), check=status).err
    assert said in err
    assert "Put run_dir on a shared file system" in err
    assert Storage().list(f"s3://out/{lie}-{engine}/run") == []
    assert "If-None-Match" in s3_cli("doctor", "--run-dir", f"s3://out/{lie}-{engine}/run", check=1).out
    local = on_s3(pipeline_file, f"{lie}-{engine}-local", run_dir=str(tmp_path / "run"), storage_options=options)
    s3_cli("launch", local, check=0)  # Input and output may lie there.


@pytest.mark.parametrize("engine", ENGINES)
def test_shards_that_are_left_early_or_empty_mix_nothing_up(
    s3_cli: Cli, s3: S3Server, pipeline_file: PipelineFiles, tmp_path: Path, engine: str
) -> None:
    storage = Storage()
    for name, count in (("a", 200_000), ("b", 0), ("c", 5), ("d", 3)):
        storage.write(
            f"s3://data/mixed/{name}.jsonl", b"".join(b'{"text": "%s%d"}\n' % (name.encode(), i) for i in range(count))
        )
    file = pipeline_file(
        steps=("my_steps:first",), tasks=1, source="s3://data/mixed", storage_options={"s3": {"engine": engine}}
    )
    content = json.loads(file.read_text())
    content["pipeline"][0]["read_jsonl"]["allow_empty"] = True
    content["pipeline"][-1]["write_jsonl"] |= {"filename": "{stem}.jsonl", "compression": None}
    file.write_text(json.dumps(content))
    s3_cli("launch", file, check=0)
    written = {
        path.name: [record["text"] for record in read_jsonl(path)] for path in (tmp_path / "run-output").iterdir()
    }
    assert written == {"a.jsonl": ["a0"], "c.jsonl": ["c0"], "d.jsonl": ["d0"]}


def test_a_key_that_looks_like_a_path_is_a_key(
    s3_cli: Cli, s3: S3Server, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    names = ["x//lead.jsonl", "x/s3://data/other.jsonl", "x/sp ace+%23#?é.jsonl"]
    for number, name in enumerate(names):
        Storage().write(f"s3://data/odd/{name}", b'{"text": "%d"}\n' % number)
    file = pipeline_file(source="s3://data/odd/x", compression=None)
    s3_cli("launch", file, "--set", "pipeline.0.read_jsonl.recursive=true", check=0)
    found = [record["text"] for path in (tmp_path / "run-output").iterdir() for record in read_jsonl(path)]
    assert sorted(found) == ["0", "1", "2"]
    options = '{"s3": {"engine": "obstore"}}'
    file = pipeline_file("obstore", source="s3://data/odd/x", storage_options=json.loads(options))
    ran = s3_cli("launch", file, "--set", "pipeline.0.read_jsonl.recursive=true", check=2)
    assert "holds a key that the engine obstore cannot represent" in ran.err
    assert "use the engine s3fs" in ran.err


@pytest.mark.parametrize("engine", ENGINES)
def test_secrets_stay_out_of_everything_that_is_written(
    s3_cli: Cli, s3: S3Server, shards: Path, pipeline_file: PipelineFiles, tmp_path: Path, engine: str
) -> None:
    load(shards)
    options = {"s3": {"engine": engine, "key": "${MY_KEY}", "secret": "${MY_SECRET}"}}
    run = tmp_path / "run"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del s3_cli.env[name]
    s3_cli.env.update(MY_KEY="my-key", MY_SECRET="hunter-2-secret")
    file = pipeline_file(source="s3://data/input", storage_options=options, retry_seconds=0.5)
    s3.set_faults(require_auth=True)
    s3_cli("launch", file, "--limit", 2, check=0)
    s3.set_faults(p_503=1.0, only=["GetObject"])
    said = s3_cli("launch", file, check=1)
    s3_cli("launch", file, "--dry-run", check=0)
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert any(b"throttled" in data for data in written)
    assert not any(b"hunter-2" in data for data in [*written, said.out.encode(), said.err.encode()])
