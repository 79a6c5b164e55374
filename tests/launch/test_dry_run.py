"""Dry runs show everything and change nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.conftest import Cli, PipelineFiles, contents

SLURM = {"type": "slurm", "partition": "cpu", "workers": 500}


def without_slurm(cli: Cli, tmp_path: Path) -> None:
    """Simulate a laptop, with only Python and the shell in the PATH."""
    folder = tmp_path / "laptop-bin"
    folder.mkdir()
    for name in ("bash", "sh", "env", "python3"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (folder / name).symlink_to(found)
    cli.env["PATH"] = str(folder)


def tree(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_of_8000_tasks_shows_all_and_touches_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    without_slurm(cli, tmp_path)
    file = pipeline_file(tasks=8000, executor=SLURM, steps=("my_steps:swallow",))
    cli.env.pop("PYTHONDONTWRITEBYTECODE", None)
    before = tree(tmp_path)
    ran = cli("launch", file, "--dry-run", "--json", check=0)
    assert tree(tmp_path) == before
    assert "Assuming Slurm's default MaxArraySize, 1001" in ran.err
    document = ran.json
    assert set(document) == {"run_dir", "fingerprint", "profile", "origins", "stages"}
    assert document["run_dir"] == str(tmp_path / "run")
    (stage,) = document["stages"]
    assert (stage["name"], stage["tasks"], stage["shards"], stage["jobs"]) == ("run", 8000, 12, 8000)
    assert stage["bytes"] == sum(path.stat().st_size for path in pipeline_file.shards.iterdir())
    assert (stage["start"]["policy"], stage["start"]["window_s"]) == ("uniform", 180)
    summary = "the first 500 of 8,000 jobs start over 180 s (uniform), peak "
    assert stage["start"]["summary"].startswith(summary)
    assert [array["jobs"] for array in stage["arrays"]] == [1001] * 7 + [993]
    assert sum(array["throttle"] for array in stage["arrays"]) == 500
    script = stage["arrays"][7]["script"]
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=run-")
    assert "#SBATCH --array=0-992%62\n" in script
    assert "ranks=$(( 7007 + SLURM_ARRAY_TASK_ID ))" in script
    assert "#SBATCH --dependency=afterany:ARRAYS\n" in stage["end_script"]
    assert "-m stagger.launch.finalize" in stage["end_script"]
    text = cli("launch", file, "--dry-run", check=0)
    assert "8,000 of 8,000 to run" in text.out
    assert text.out.count("#!/bin/bash") == 9
    assert tree(tmp_path) == before


def test_what_a_dry_run_assumes_without_slurm_is_said_once_for_all_stages(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    without_slurm(cli, tmp_path)
    document = json.loads(pipeline_file(tasks=2, executor=SLURM).read_text())
    reader, *steps = document.pop("pipeline")
    names = ("one", "two", "three")
    document["stages"] = [
        {"name": name, "pipeline": [reader, *steps[:-1], {"write_jsonl": {"path": str(tmp_path / name)}}]}
        for name in names
    ]
    file = tmp_path / "stages.yaml"
    file.write_text(json.dumps(document))
    ran = cli("launch", file, "--dry-run", "--json", check=0)
    assert [stage["name"] for stage in ran.json["stages"]] == list(names)
    assert ran.err.count("Assuming Slurm's default MaxArraySize") == 1


def test_the_same_file_runs_its_first_ranks_here(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    without_slurm(cli, tmp_path)
    file = pipeline_file(tasks=8000, executor=SLURM)
    assert "no sbatch on this machine" in cli("launch", file, check=2).err
    assert not (tmp_path / "run").exists()
    (stage,) = cli("launch", file, "--executor", "local", "--limit", 10, "--json", check=0).json["stages"]
    assert (stage["done"], stage["pending"], stage["tasks"]) == (10, 7990, 8000)
    assert len(contents(tmp_path / "run-output")) == 10
