"""Runs with input, output and run directory on S3, against moto's server."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, Run, WriteJsonl
from stagger.storage.storage import Storage
from tests.conftest import Bucket, Cli, PipelineFiles, contents, until
from tests.kit.buckets import objects, on_s3
from tests.kit.runs import counts, status


@pytest.fixture
def s3_cli(cli: Cli, bucket: Bucket) -> Cli:
    cli.env.update(bucket.env)
    return cli


def test_the_same_outputs_as_on_a_file_system(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    s3_cli("launch", pipeline_file("here"), check=0)
    ran = s3_cli("launch", on_s3(pipeline_file, loaded), check=0)
    assert f"The result is in {loaded.url}/output" in ran.out
    assert objects(loaded, "output") == contents(tmp_path / "here-output")
    run = objects(loaded, "run")
    assert sorted(name for name in run if name.startswith("completions/")) == [
        f"completions/{r:05d}.json" for r in range(4)
    ]
    assert b"rank 2, attempt 1" in run["logs/00002/1.log"]
    assert b"s3: requests by obstore\n" in run["logs/00002/1.log"]
    assert "lock" not in run
    assert json.loads(run["stats.json"])["done"] == 4
    assert counts(status(s3_cli, f"{loaded.url}/run")) == (4, 0, 0, 0)
    assert "rank 2, attempt 1" in s3_cli("logs", f"{loaded.url}/run", "--rank", "2", check=0).out


def test_a_failed_or_killed_task_leaves_no_object_and_retry_repairs(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    s3_cli("launch", pipeline_file("undisturbed"), check=0)
    flag = tmp_path / "flag"
    steps = (
        {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}},
        {"my_steps:kill_on": {"ranks": [2], "flag": str(flag)}},
    )
    s3_cli("launch", on_s3(pipeline_file, loaded, steps=steps), check=1)
    assert sorted(objects(loaded, "output")) == ["00000.jsonl.zst", "00003.jsonl.zst"]
    stage = status(s3_cli, f"{loaded.url}/run")
    assert (counts(stage), stage["failed_ranks"]) == ((2, 2, 0, 0), [1, 2])
    assert "rank 1 cannot go on" in s3_cli("logs", f"{loaded.url}/run", "--failed", check=0).out
    flag.touch()
    s3_cli("retry", f"{loaded.url}/run", check=0)
    assert objects(loaded, "output") == contents(tmp_path / "undisturbed-output")


def test_of_two_launches_at_once_one_refuses(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = on_s3(pipeline_file, loaded, steps=({"my_steps:hold": {"flag": str(flag)}},), tasks=2)
    both = [s3_cli.start("launch", file) for _ in range(2)]
    until(lambda: any(process.poll() is not None for process in both), "one to refuse")
    flag.touch()
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in both]
    assert sorted(status for _, status in ended) == [0, 2]
    assert any("is in use by process" in err for err, status in ended if status == 2)


def test_an_output_beyond_one_put_appears_whole_or_not_at_all(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("stagger.storage.s3.output.ONE_PUT_BYTES", 6 * 2**20)
    storage = Storage({"s3": {"endpoint_url": bucket.endpoint}})
    piece = bytes(range(256)) * 4096
    for end in ("commit", "abort"):
        output = storage.output(f"{bucket.url}/{end}", "tag")
        for _ in range(20):
            output.write(piece)
        assert bucket.files.ls(bucket.name) == [f"{bucket.name}/commit"] * (end == "abort")
        assert len(bucket.files.call_s3("list_multipart_uploads", Bucket=bucket.name)["Uploads"]) == 1
        if end == "commit":
            output.finish()
            output.commit(lambda: None, "")
        else:
            output.abort()
    assert bucket.files.cat(f"{bucket.name}/commit") == piece * 20
    assert not bucket.files.exists(f"{bucket.name}/abort")
    assert bucket.files.call_s3("list_multipart_uploads", Bucket=bucket.name).get("Uploads") is None


def test_a_bucket_that_is_not_there_is_said_at_once(s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles) -> None:
    file = on_s3(pipeline_file, loaded, run_dir="s3://no-such-bucket-here/run")
    err = s3_cli("launch", file, check=2).err
    assert "there is no bucket no-such-bucket-here" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("engine", ["s3fs", "obstore"])
@pytest.mark.parametrize("what", ["source", "output"])
def test_a_missing_bucket_of_input_or_output_is_called_that(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, engine: str, what: str
) -> None:
    file = on_s3(
        pipeline_file,
        loaded,
        **{what: "s3://no-such-bucket-here/data"},
        storage_options={"s3": {"engine": engine}},
    )
    err = s3_cli("launch", file, check=2).err
    assert "there is no bucket no-such-bucket-here. Create it, or correct the path." in err


def test_input_that_matches_nothing_is_said_at_once(s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles) -> None:
    err = s3_cli("launch", on_s3(pipeline_file, loaded, source=f"{loaded.url}/nothing"), check=2).err
    assert f"Nothing in {loaded.url}/nothing matches" in err


def test_lock_of_a_dead_launcher_is_taken_over(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = on_s3(pipeline_file, loaded, steps=({"my_steps:hold": {"flag": str(flag)}},), tasks=2)
    running = s3_cli.start("launch", file)
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "both workers to hold")
    running.kill()
    running.wait(timeout=60)
    flag.touch()
    assert counts(status(s3_cli, f"{loaded.url}/run"))[2] == 0
    s3_cli("launch", file, check=0)
    assert counts(status(s3_cli, f"{loaded.url}/run")) == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "(unreachable; retries exhausted)"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "redentials"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(
    s3_cli: Cli, bucket: Bucket, env: dict[str, str], said: str
) -> None:
    ran = s3_cli("status", f"{bucket.url}/run", check=1, **env)
    *waiting, last = ran.err.splitlines()
    assert last.startswith(f"stagger: {bucket.url}/run/run.json: ")
    assert said in last
    assert all("retrying in" in line for line in waiting)


def test_a_handle_has_the_storage_options_of_its_run(
    loaded: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in loaded.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"s3": {"endpoint_url": loaded.endpoint}}
    steps: list[Any] = [ReadJsonl(f"{loaded.url}/input"), WriteJsonl(f"{loaded.url}/output")]
    run = LocalExecutor(steps, run_dir=f"{loaded.url}/run", tasks=2, storage_options=options).run(wait=False)
    assert pickle.loads(pickle.dumps(run)).wait().complete
    assert "rank 1, attempt 1" in run.logs(1)
    assert run.outputs() == [f"{loaded.url}/output/{rank:05d}.jsonl.zst" for rank in range(2)]
    assert Run.open(f"{loaded.url}/run", options) == run
