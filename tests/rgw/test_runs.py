"""Runs wholly on RGW: input, outputs and run directory. Also the lock, claims of blocks, and `stagger doctor`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stagger.blocks.placement.petals import compute_throughputs
from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage
from tests.conftest import ROOT, Bucket, Cli, PipelineFiles, output_ids, until
from tests.kit.buckets import objects, on_s3
from tests.kit.claimants import TOTAL, kinds, one_at_a_time, who_claimed
from tests.kit.runs import EVERYTHING, counts, status
from tests.rgw.conftest import open_uploads

pytestmark = pytest.mark.rgw


@pytest.fixture
def options(engine_name: str) -> dict[str, dict[str, str]]:
    return {"s3": {"engine": engine_name}}


@pytest.fixture
def loaded(bucket: Bucket, shards: Path) -> Bucket:
    """The bucket, with the shards below input/."""
    bucket.files.put([str(path) for path in sorted(shards.iterdir())], f"{bucket.name}/input/")
    return bucket


def test_a_run_in_which_tasks_fail_and_die_is_repaired_by_a_retry(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, tmp_path: Path, options: dict[str, dict[str, str]]
) -> None:
    flag = tmp_path / "flag"
    steps = (
        {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}},
        {"my_steps:kill_on": {"ranks": [2], "flag": str(flag)}},
    )
    s3_cli("launch", on_s3(pipeline_file, loaded, steps=steps, storage_options=options), check=1)
    assert sorted(objects(loaded, "output")) == ["00000.jsonl.zst", "00003.jsonl.zst"]
    assert b"rank 1 cannot go on" in objects(loaded, "run")["logs/00001/1.log"]
    # As an attempt leaves it that dies between its commit and its completion record.
    loaded.files.pipe(f"{loaded.name}/output/00001.jsonl.zst", b"of an earlier attempt")
    flag.touch()
    s3_cli("retry", f"{loaded.url}/run", check=0)
    loaded.files.get(f"{loaded.name}/output/", str(tmp_path / "output"), recursive=True)
    assert output_ids(tmp_path / "output") == EVERYTHING
    assert counts(status(s3_cli, f"{loaded.url}/run")) == (4, 0, 0, 0)
    assert not loaded.files.exists(f"{loaded.name}/run/lock")


def test_a_task_killed_in_the_middle_of_an_upload_leaves_nothing_and_a_retry_writes_the_output(
    s3_cli: Cli, bucket: Bucket, tmp_path: Path, pipeline_file: PipelineFiles, options: dict[str, dict[str, str]]
) -> None:
    """90 MB exceed one PUT: the output is a multipart upload, and the end of the stage aborts the one left over."""
    flag = tmp_path / "flag"
    content = {
        "name": "killed",
        "run_dir": f"{bucket.url}/run",
        "storage_options": options,
        "pipeline": [
            {"my_steps:large": {"flag": str(flag)}},
            {"write_jsonl": {"path": f"{bucket.url}/output", "compression": None}},
        ],
    }
    file = tmp_path / "killed.json"
    file.write_text(json.dumps(content))
    launched = s3_cli.start("launch", file)
    until(flag.exists, "the task to have written 90 MB")
    assert open_uploads(bucket) == ["output/00000.jsonl"]
    os.kill(int(flag.read_text()), signal.SIGKILL)
    launched.communicate(timeout=120)
    assert launched.returncode == 1
    assert open_uploads(bucket) == []
    assert objects(bucket, "output") == {}
    s3_cli("retry", f"{bucket.url}/run", check=0)
    (data,) = objects(bucket, "output").values()
    assert [json.loads(line)["id"] for line in data.splitlines()] == [str(number) for number in range(110)]
    assert open_uploads(bucket) == []
    assert objects(bucket, "run/uploads") == {}


def test_of_three_launches_at_once_one_takes_the_lock_of_a_dead_one(
    s3_cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, tmp_path: Path, options: dict[str, dict[str, str]]
) -> None:
    flag = tmp_path / "flag"
    steps = ({"my_steps:hold": {"flag": str(flag)}},)
    file = on_s3(pipeline_file, loaded, steps=steps, tasks=1, storage_options=options)
    dead = s3_cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "its worker to hold")
    dead.kill()
    dead.communicate(timeout=60)
    assert loaded.files.exists(f"{loaded.name}/run/lock")
    three = [s3_cli.start("launch", file) for _ in range(3)]
    until(lambda: sum(process.poll() is not None for process in three) == 2, "two of three to refuse")
    flag.touch()
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in three]
    assert sorted(code for _, code in ended) == [0, 2, 2], ended
    assert all(f"{loaded.url}/run" in err and "Traceback" not in err for err, code in ended if code == 2)
    left = objects(loaded, "run")
    assert {name for name in left if name.startswith("completions/")} == {"completions/00000.json"}
    assert not [name for name in left if name.startswith("lock")]


def test_servers_that_claim_at_once_and_die_cover_as_those_that_come_one_at_a_time(bucket: Bucket) -> None:
    """Two of the twelve are killed as soon as they have claimed."""
    options, folder = {"s3": {"engine": "obstore"}}, f"{bucket.url}/registry"
    command = [sys.executable, "-m", "tests.kit.claimants", folder, json.dumps(options), "12", "claimed"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert ran.stderr == ""
    assert sorted(json.loads(ran.stdout)) == [-signal.SIGKILL] * 2 + [0] * 10
    view = Registry(Storage(options), folder, TOTAL).refresh()
    assert len(view.members) == view.claim == 12
    order = who_claimed(Storage(options), folder, 12)
    assert compute_throughputs(view.spans(), TOTAL).min() == one_at_a_time(kinds(order)) > 0


def test_doctor_finds_that_conditional_writes_hold(
    s3_cli: Cli, bucket: Bucket, options: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    more = ("--storage-options", json.dumps(options), "--json")
    ran = s3_cli("doctor", "--run-dir", f"{bucket.url}/run", *more, PATH=str(tmp_path))  # No Slurm there.
    found = {check["name"]: check["state"] for check in ran.json["checks"]}
    assert found["storage"] == "ok", ran.out
    assert bucket.files.find(bucket.name) == []
