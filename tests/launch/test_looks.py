"""Each command looks once: it lists completions, reads launch records and queries Slurm no more often than needed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagger.launch import finalize
from stagger.launch.launch import Wishes, launch
from stagger.launch.retry import retry
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.load import load_file
from stagger.status.stage_status import status_of
from stagger.storage.storage import Storage
from tests.conftest import PipelineFiles

#: Stand-ins for a Slurm that accepts every job and forgets it at once. Every call adds a line to the log.
COMMANDS = {
    "sbatch": "echo Submitted batch job $(wc -l <{log})",
    "squeue": "true",
    "sacct": "true",
    "scancel": "true",
    "scontrol": "echo 'MaxArraySize = 1001'",
    "sacctmgr": "true",
}


class Looks:
    """Counts the listings, reads and Slurm queries of commands since the last `take`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.log = folder / "slurm.log"
        self.seen: Counter[str] = Counter()
        commands = folder / "bin"
        commands.mkdir()
        for name, does in COMMANDS.items():
            script = f"#!/bin/bash\necho {name} >>{self.log}\n{does.format(log=self.log)}\n"
            (commands / name).write_text(script)
            (commands / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
        self.count(monkeypatch, "named", lambda path: path if path.endswith("/completions") else "")
        self.count(monkeypatch, "read", lambda path: path if path.endswith("launch.json") else "")
        self.take()

    def count(self, monkeypatch: pytest.MonkeyPatch, method: str, what: Callable[[str], str]) -> None:
        real = getattr(Storage, method)

        def counted(storage: Storage, path: str, *arguments: Any) -> Any:
            if name := what(path):
                self.seen[name] += 1
            return real(storage, path, *arguments)

        monkeypatch.setattr(Storage, method, counted)

    def take(self) -> dict[str, int]:
        """The most listings of any stage's completions, the most reads of any launch record, the queries to Slurm."""
        asked = Counter(self.log.read_text().split() if self.log.exists() else [])
        self.log.write_text("")

        def most(end: str) -> int:
            return max((number for path, number in self.seen.items() if path.endswith(end)), default=0)

        found = {
            "completions": most("completions"),
            "launch records": most("launch.json"),
            "squeue": asked["squeue"],
            "sacct": asked["sacct"],
        }
        self.seen.clear()
        return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Looks:
    return Looks(monkeypatch, tmp_path)


def opened(path: Path) -> tuple[RunFolder, RunRecord]:
    return RunFolder.open(str(path))


SLURM = {"type": "slurm"}


def test_slurm_commands_look_once(looks: Looks, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """One listing of completions under the lock, one read of each launch record, one squeue, one sacct."""
    spec = load_file(str(pipeline_file(executor=SLURM, retries={"max": 1})))
    run = tmp_path / "run"
    launch(spec, Wishes())
    assert looks.take() == {"completions": 1, "launch records": 1, "squeue": 0, "sacct": 0}
    # All jobs have vanished without a record: the second launch does what the end job did not, and asks how they ended.
    launch(spec, Wishes())
    assert looks.take() == {"completions": 1, "launch records": 1, "squeue": 1, "sacct": 1}
    retry(*opened(run), ranks={2})
    assert looks.take() == {"completions": 1, "launch records": 1, "squeue": 1, "sacct": 1}
    retry(*opened(run), failed_only=True)
    assert looks.take() == {"completions": 1, "launch records": 1, "squeue": 1, "sacct": 1}
    assert finalize.main([str(run), "run", '{"launch": 4}']) == 0
    assert looks.take() == {"completions": 1, "launch records": 1, "squeue": 1, "sacct": 1}
    status_of(*opened(run))
    assert looks.take() == {"completions": 1, "launch records": 1, "squeue": 1, "sacct": 1}


def test_local_commands_look_before_and_after_the_ranks_run(
    looks: Looks, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    spec = load_file(str(pipeline_file()))
    launch(spec, Wishes(limit=2))
    assert looks.take() == {"completions": 2, "launch records": 1, "squeue": 0, "sacct": 0}
    launch(spec, Wishes(limit=3))
    assert looks.take() == {"completions": 2, "launch records": 1, "squeue": 0, "sacct": 0}
    retry(*opened(tmp_path / "run"))
    assert looks.take() == {"completions": 2, "launch records": 1, "squeue": 0, "sacct": 0}


def test_a_run_of_two_stages_is_looked_at_per_stage(looks: Looks, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    content = json.loads(pipeline_file().read_text())
    stages = [{"name": name, "depends": depends, "pipeline": content["pipeline"]} for name, depends in STAGES]
    stages[1]["pipeline"] = [{"read_jsonl": {"path": str(tmp_path / "run-output")}}]
    del content["pipeline"]
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({**content, "stages": stages}))
    launch(load_file(str(file)), Wishes())
    found = looks.take()
    assert found == {"completions": 2, "launch records": 1, "squeue": 0, "sacct": 0}


STAGES: list[tuple[str, list[str]]] = [("first", []), ("second", ["first"])]
