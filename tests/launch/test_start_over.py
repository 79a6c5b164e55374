"""`launch --fresh` undoes what earlier launches of a run have written, and only that."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, WriteJsonl
from stagger.errors import StaggerError
from stagger.launch.launch import Wishes, launch
from stagger.launch.start_over import past_of, undo_all
from stagger.pipeline.chain import Step
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.load import load_file
from stagger.storage.local_files import LocalOutput
from stagger.task import Superseded
from stagger.task.commit import RankCommit
from tests.conftest import Bucket, Cli, PipelineFiles, contents, output_ids
from tests.kit.buckets import objects, on_s3
from tests.kit.runs import EVERYTHING, SLURM, completions, counts, failing_run, status
from tests.kit.slurm_front import front


def go(file: Path, **wishes: Any) -> None:
    launch(load_file(str(file)), Wishes(**wishes)).raise_if_failed()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_changed_pipeline_starts_over_and_leaves_nothing_of_the_old_one(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """Fewer ranks, which write into another folder. Files of others stay."""
    cli("launch", pipeline_file(compression=None), check=0)
    (tmp_path / "run-output" / "notes.txt").touch()
    changed = pipeline_file(tasks=2, compression=None, output=str(tmp_path / "other"))
    assert "launch FILE --fresh" in cli("launch", changed, check=2).err
    said = f"run: 4 of 4 ranks done, 4 output files, such as {tmp_path}/run-output/00000.jsonl"
    before = contents(tmp_path / "run-output"), names(tmp_path / "run" / "completions")
    assert said in cli("launch", changed, "--fresh", "--dry-run", check=0).err
    assert (contents(tmp_path / "run-output"), names(tmp_path / "run" / "completions")) == before
    assert said in cli("launch", changed, "--fresh", check=0).err
    assert names(tmp_path / "run-output") == ["notes.txt"]
    assert output_ids(tmp_path / "other") == EVERYTHING
    assert counts(status(cli, tmp_path / "run")) == (2, 0, 0, 0)
    assert [one["attempt"] for one in completions(tmp_path / "run")] == ["2", "2"]
    cli("status", tmp_path / "run", "--verify", check=0)
    assert "undoes" not in cli("launch", changed, check=0).err


def test_ranks_that_failed_before_are_pending_then(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    failing_run(cli, pipeline_file, tmp_path, 1, 2)
    assert counts(status(cli, tmp_path / "run")) == (2, 2, 0, 0)
    cli("launch", pipeline_file(), "--fresh", "--limit", "1", check=0)
    assert counts(status(cli, tmp_path / "run")) == (1, 0, 0, 3)
    assert names(tmp_path / "run-output") == ["00000.jsonl.zst"]
    cli("launch", tmp_path / "run.yaml", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


@pytest.mark.parametrize("commit", ["rank", "shard"])
def test_an_attempt_of_before_that_wakes_commits_nothing(
    pipeline_file: PipelineFiles, tmp_path: Path, commit: str
) -> None:
    """Its rank is none of the new division, so no later attempt would ever stop it."""
    writer = {"filename": "{stem}.jsonl"} if commit == "shard" else None
    go(pipeline_file(commit=commit, writer=writer))
    settings = str(tmp_path / "run" / "launches" / "1" / "settings.json")
    go(pipeline_file(commit=commit, writer=writer, tasks=2), fresh=True)
    left = contents(tmp_path / "run-output")
    assert subprocess.run([sys.executable, "-I", "-m", "stagger.task", settings, "3"], check=False).returncode == 1
    assert "Attempt 2 of this rank" in (tmp_path / "run" / "failures" / "00003.1.json").read_text()
    assert contents(tmp_path / "run-output") == left
    assert names(tmp_path / "run" / "completions") == ["00000.json", "00001.json"]


@pytest.mark.parametrize("moment", [0, 1])
def test_an_attempt_that_wakes_within_its_commit_shows_nothing(
    pipeline_file: PipelineFiles, tmp_path: Path, moment: int
) -> None:
    """It has claimed the commit, and was frozen before its first or second rename, while the run started over."""
    launch(load_file(str(pipeline_file())), Wishes(limit=3))
    run, record = RunFolder.open(str(tmp_path / "run"), {})
    folder = run.stage(record, "run").folder

    class Frozen(LocalOutput):
        def commit(self, confirm: Callable[[], None], replaces: str | None) -> None:
            undo_all(past_of(run, record, record))
            super().commit(confirm, replaces)

    kinds = [Frozen if number == moment else LocalOutput for number in range(2)]
    files = [kind(f"{tmp_path}/run-output/{number}", "tag", 0o644) for number, kind in enumerate(kinds)]
    for file in files:
        file.write(b"{}")
        file.finish()
    with pytest.raises(Superseded):
        RankCommit(folder, 3, "1", "job", repeated=False).publish(files, folder.completion(3), b"{}")
    for file in files:
        file.abort()
    assert names(tmp_path / "run-output") == names(tmp_path / "run" / "completions") == []


def test_what_was_cut_off_in_the_middle_is_continued(pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """All is undone, and nothing launched: a launch of the old pipeline runs all ranks again, and so does --fresh."""
    file = pipeline_file()
    go(file)
    spec = load_file(str(file))
    run, record = RunFolder.open(str(tmp_path / "run"), {})
    undo_all(past_of(run, record, RunRecord(spec, outputs=record.outputs)))
    assert names(tmp_path / "run-output") == names(tmp_path / "run" / "completions") == []
    go(file)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    go(pipeline_file(tasks=3), fresh=True)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    assert names(tmp_path / "run" / "completions") == [f"0000{rank}.json" for rank in range(3)]


def test_files_that_no_record_names_are_left_to_overwrite(pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    go(pipeline_file(compression=None))
    foreign = tmp_path / "run-output" / "00009.jsonl"
    foreign.write_text("")
    with pytest.raises(StaggerError, match=r"1 file in .*, such as 00009\.jsonl: not written by this run"):
        go(pipeline_file(compression=None, tasks=2), fresh=True)
    assert len(completions(tmp_path / "run")) == 4  # Nothing is undone by a launch that is refused.
    go(pipeline_file(compression=None, tasks=2), fresh=True, overwrite=True)
    assert names(tmp_path / "run-output") == ["00000.jsonl", "00001.jsonl"]


def test_whoever_changes_his_mind_keeps_all(pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    class No(Exception):
        pass

    def no() -> None:
        raise No

    go(pipeline_file())
    before = contents(tmp_path / "run-output")
    with pytest.raises(No):
        go(pipeline_file(tasks=2), fresh=True, confirm=no)
    assert contents(tmp_path / "run-output") == before
    assert len(completions(tmp_path / "run")) == 4
    go(pipeline_file("new"), fresh=True, confirm=no)  # There is nothing to remove.


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 2, 4), ("y", 0, 2)])
def test_a_user_at_a_terminal_is_asked(
    pipeline_file: PipelineFiles, tmp_path: Path, answer: str, code: int, left: int
) -> None:
    go(pipeline_file())
    command = [sys.executable, "-m", "stagger", "launch", str(pipeline_file(tasks=2)), "--fresh"]
    user, terminal = pty.openpty()
    os.write(user, f"{answer}\n".encode())
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False, cwd=tmp_path)
    os.close(user)
    os.close(terminal)
    assert done.returncode == code, done.stderr
    assert "Remove them? [y/N]" in done.stderr
    assert len(names(tmp_path / "run-output")) == left


def test_what_would_be_read_is_not_removed(pipeline_file: PipelineFiles) -> None:
    """The run has written into the folder of its input."""
    go(pipeline_file(output=str(pipeline_file.shards), compression=None))
    before = contents(pipeline_file.shards)
    with pytest.raises(StaggerError, match=r"00000\.jsonl is an output of an earlier launch"):
        go(
            pipeline_file(output=str(pipeline_file.shards), compression=None, writer={"filename": "a-{rank}"}),
            fresh=True,
        )
    assert contents(pipeline_file.shards) == before


def test_jobs_must_be_cancelled_first(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file(executor=SLURM)
    calls = front(cli, tmp_path)
    cli("launch", file, check=0)
    name = json.loads((tmp_path / "run" / "launches" / "1" / "launch.json").read_text())["arrays"][0]["name"]
    squeue = tmp_path / "front" / "squeue"
    squeue.write_text(f"#!/bin/bash\necho '9001|1|RUNNING|1:00|N/A|None|{name}|(null)'\n")
    calls.write_text("")
    said = cli("launch", file, "--fresh", check=2).err
    assert "has queued or running jobs" in said
    assert f"stagger cancel {tmp_path / 'run'}" in said
    assert "sbatch" not in calls.read_text()
    squeue.write_text("#!/bin/bash\ntrue\n")
    cli("launch", file, "--fresh", check=0)
    assert calls.read_text().count("sbatch") == 2


def test_one_stage_becomes_two(pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """The records of the only stage lie in the run directory itself."""
    go(pipeline_file())
    content = json.loads((tmp_path / "run.yaml").read_text())
    first = {"name": "run", "tasks": 2, "pipeline": content.pop("pipeline")}
    last = [{"read_jsonl": {"path": str(tmp_path / "run-output")}}, {"write_jsonl": {"path": str(tmp_path / "end")}}]
    content["stages"] = [first, {"name": "last", "depends": ["run"], "tasks": 1, "pipeline": last}]
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    for tasks in (2, 4):
        first["tasks"] = tasks
        (tmp_path / "run.yaml").write_text(json.dumps(content))
        with pytest.raises(StaggerError, match="--fresh"):
            go(tmp_path / "run.yaml")
    go(tmp_path / "run.yaml", fresh=True)
    assert output_ids(tmp_path / "run-output") == output_ids(tmp_path / "end") == EVERYTHING
    assert names(tmp_path / "run" / "completions") == []
    go(tmp_path / "run.yaml", fresh=True)
    assert output_ids(tmp_path / "end") == EVERYTHING


def test_from_python(tmp_path: Path, shards: Path) -> None:
    def run(tasks: int, **wishes: bool) -> None:
        steps: list[Step] = [ReadJsonl(str(shards)), WriteJsonl(str(tmp_path / "out"))]
        LocalExecutor(steps, run_dir=str(tmp_path / "run"), tasks=tasks).run(**wishes)

    run(3)
    with pytest.raises(StaggerError, match="fresh=True"):
        run(2)
    run(2, fresh=True)
    assert output_ids(tmp_path / "out") == EVERYTHING
    assert names(tmp_path / "out") == ["00000.jsonl.zst", "00001.jsonl.zst"]


@pytest.mark.parametrize("engine", ["s3fs", "obstore"])
def test_on_s3(cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, engine: str) -> None:
    cli.env |= loaded.env
    more: dict[str, Any] = {"storage_options": {"s3": {"engine": engine}}}
    cli("launch", on_s3(pipeline_file, loaded, **more), check=0)
    cli("launch", on_s3(pipeline_file, loaded, tasks=2, **more), "--fresh", check=0)
    assert sorted(objects(loaded, "output")) == ["00000.jsonl.zst", "00001.jsonl.zst"]
    assert counts(status(cli, f"{loaded.url}/run")) == (2, 0, 0, 0)
    cli("status", f"{loaded.url}/run", "--checksum", check=0)
