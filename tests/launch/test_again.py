"""Done ranks run again on request: all of them, or those whose outputs are lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stagger.errors import StaggerError
from stagger.launch.again import undone
from stagger.launch.retry import retry
from stagger.rundir.run_folder import RunFolder
from stagger.status.look import look_at_run
from tests.conftest import Bucket, Cli, PipelineFiles, contents, output_ids
from tests.kit.buckets import objects, on_s3
from tests.kit.runs import EVERYTHING, SLURM, completions, counts, status
from tests.kit.slurm_front import front


def outputs(folder: Path) -> dict[str, bytes]:
    return contents(folder / "run-output")


def test_lost_outputs_are_named_and_made_again(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file, run = pipeline_file(), tmp_path / "run"
    cli("launch", file, check=0)
    whole = outputs(tmp_path)
    assert "lost:" not in cli("status", run, "--verify", check=0).out
    (tmp_path / "run-output" / "00001.jsonl.zst").unlink()
    (tmp_path / "run-output" / "00003.jsonl.zst").write_bytes(b"short")
    cli("status", run, check=0)  # Looks at no output.
    said = cli("status", run, "--verify", check=1).out
    assert "lost: 2 output files (1 missing, 1 of another size) of ranks 1,3, such as" in said
    assert f"stagger retry {run} --lost" in said
    (stage,) = cli("status", run, "--verify", "--json", check=1).json["stages"]
    assert (stage["lost"]["ranks"], stage["lost"]["files"]) == ("1,3", 2)
    assert f"make them again with: stagger retry {run} --lost" in cli("launch", file, check=1).err
    cli("retry", run, "--lost", check=0)
    assert outputs(tmp_path) == whole
    assert [record["attempt"] for record in completions(run)] == ["1", "2", "1", "2"]
    cli("status", run, "--verify", check=0)


def test_done_ranks_run_again_and_replace_what_they_wrote(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """The second time a rank writes fewer files: those of the first that it does not write again are removed."""
    (tmp_path / "team_steps.py").write_text(
        "import os\n"
        "def fewer(data, rank, world_size, flag):\n"
        "    for number, document in enumerate(data):\n"
        "        if number < 10 or not os.path.exists(flag):\n"
        "            yield document\n"
    )
    flag, run = tmp_path / "flag", tmp_path / "run"
    step = {"team_steps:fewer": {"flag": str(flag)}}
    cli("launch", pipeline_file(steps=(step,), compression=None, writer={"max_bytes": 4000}), check=0)
    before = set(outputs(tmp_path))
    assert "Rank 2 of run is done; to repeat it, add --again." in cli("retry", run, "--rank", 2, check=2).err
    flag.touch()
    cli("retry", run, "--rank", 2, "--again", check=0)
    after = set(outputs(tmp_path))
    assert before - after == {name for name in before if name[:5] == "00002"} - {"00002-00000.jsonl"}
    assert counts(status(cli, run)) == (4, 0, 0, 0)
    cli("retry", run, "--again", check=0)
    assert sorted(outputs(tmp_path)) == [f"0000{rank}-00000.jsonl" for rank in range(4)]
    assert len(output_ids(tmp_path / "run-output")) == 40


@pytest.mark.parametrize("commit", ["rank", "shard"])
def test_an_attempt_of_before_that_wakes_commits_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, commit: str
) -> None:
    """The rank is undone, but the launch that runs it again has not begun when an attempt of the first one goes on."""
    writer = {"filename": "{stem}.jsonl"} if commit == "shard" else None
    run = tmp_path / "run"
    cli("launch", pipeline_file(commit=commit, writer=writer), check=0)
    folder, record = RunFolder.open(str(run), {})
    with folder.lock.held():
        undone(look_at_run(folder, record)["run"], {1})
    assert counts(status(cli, run)) == (3, 0, 0, 1)
    left = outputs(tmp_path)
    settings = str(run / "launches" / "1" / "settings.json")
    assert subprocess.run([sys.executable, "-I", "-m", "stagger.task", settings, "1"], check=False).returncode == 1
    assert "Attempt 2 of this rank" in (run / "failures" / "00001.1.json").read_text()
    assert outputs(tmp_path) == left
    assert not (run / "completions" / "00001.json").exists()
    cli("retry", run, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    assert [record["attempt"] for record in completions(run)] == ["1", "2", "1", "1"]


def test_stages_that_have_read_earlier_outputs_are_named(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    first = {"name": "first", "tasks": 2, "pipeline": [{"read_jsonl": {"path": str(pipeline_file.shards)}}]}
    first["pipeline"].append({"write_jsonl": {"path": str(tmp_path / "middle")}})  # type: ignore[attr-defined]
    second = {"name": "second", "depends": ["first"], "pipeline": [{"read_jsonl": {"path": str(tmp_path / "middle")}}]}
    second["pipeline"].append({"write_jsonl": {"path": str(tmp_path / "end")}})  # type: ignore[attr-defined]
    file, run = tmp_path / "p.yaml", tmp_path / "run"
    file.write_text(json.dumps({"name": "p", "run_dir": str(run), "stages": [first, second]}))
    cli("launch", file, check=0)
    (tmp_path / "middle" / "00001.jsonl.zst").unlink()  # Its only reader is done: it may go.
    cli("status", run, "--verify", check=0)
    cli("retry", run, "--lost", check=0)
    assert not (tmp_path / "middle" / "00001.jsonl.zst").exists()
    said = cli("retry", run, "--stage", "first", "--lost", check=0).err
    assert "second: 1 rank is done and has read the earlier outputs of first" in said
    assert f"stagger retry {run} --stage second --again" in said
    assert (tmp_path / "middle" / "00001.jsonl.zst").exists()
    cli("retry", run, "--stage", "second", "--again", check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING


def test_nothing_is_undone_where_it_cannot_run_again(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on Slurm, on a machine without sbatch. Every rank is done."""
    run = tmp_path / "run"
    cli("launch", pipeline_file(), check=0)
    monkeypatch.setattr("stagger.slurm.cluster.is_here", lambda: False)
    folder, record = RunFolder.open(str(run), {})
    with pytest.raises(StaggerError, match="no sbatch on this machine"):
        retry(folder, record, again=True, changes=["executor={type: slurm}"])
    assert len(completions(run)) == 4


def test_verify_asks_slurm_once(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    calls = front(cli, tmp_path)
    cli("launch", pipeline_file(executor=SLURM), check=0)
    calls.write_text("")
    cli("status", tmp_path / "run", "--verify")
    assert calls.read_text().count("squeue") == 1


@pytest.mark.parametrize("engine", ["s3fs", "obstore"])
def test_on_s3(cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, engine: str) -> None:
    cli.env |= loaded.env
    file = on_s3(pipeline_file, loaded, storage_options={"s3": {"engine": engine}})
    cli("launch", file, check=0)
    whole = objects(loaded, "output")
    loaded.files.rm(f"{loaded.name}/output/00002.jsonl.zst")
    assert "of rank 2, such as" in cli("status", f"{loaded.url}/run", "--verify", check=1).out
    cli("retry", f"{loaded.url}/run", "--lost", check=0)
    assert objects(loaded, "output") == whole
    assert counts(status(cli, f"{loaded.url}/run")) == (4, 0, 0, 0)
