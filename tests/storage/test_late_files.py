"""Files of the run directory that a network file system shows late are waited for."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from stagger.errors import Interrupted, StaggerError
from stagger.pipeline import Shard
from stagger.pipeline.pickled import dump_pickle, load_pickle, sha256
from stagger.pipeline.shard_table import ShardTable
from stagger.pipeline.task_context import StopFlag
from stagger.plan.sharding import assign
from stagger.rundir.plan_file import encoded, read_rank
from stagger.storage import late_files
from stagger.storage.storage import Storage
from stagger.task import TaskSettings
from tests.kit.steps import swallow

PLAN = b"".join(encoded("s", "f00d", [], assign(ShardTable([Shard("a", 1)]), 1, "count")))


class Late:
    """A file that appears, whole, when somebody has looked for it `looks` times."""

    def __init__(self, path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, looks: int = 3) -> None:
        self.looks = looks
        self.path = path
        self.data = data
        monkeypatch.setattr(time, "sleep", self.look)

    def look(self, _seconds: float) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(self.data)
            self.path.chmod(0o600)


def test_a_plan_that_appears_late_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder appears late, too."""
    path = tmp_path / "run" / "plan" / "f00d"
    Late(path, PLAN, monkeypatch)
    assert read_rank(Storage(), str(path), "f00d", 0).shards == [Shard("a", 1)]


def test_settings_and_steps_that_appear_late_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TaskSettings("/run", "f00d", 3, "/")
    Late(tmp_path / "settings.json", settings.to_json().encode(), monkeypatch)
    assert TaskSettings.of(str(tmp_path / "settings.json")) == settings
    data = dump_pickle([swallow])
    Late(tmp_path / "pipeline.pkl", data, monkeypatch)
    assert load_pickle(Storage(), str(tmp_path / "pipeline.pkl"), sha256(data)) == [swallow]


def test_a_file_that_never_appears_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rank of the job does not wait for the plan again."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    for _ in range(2):
        with pytest.raises(StaggerError, match=r"plan .*/nothing is missing"):
            read_rank(Storage(), str(tmp_path / "nothing"), "f00d", 0)
        assert late_files.LATE_S <= clock[0] < late_files.LATE_S + late_files.LONGEST_S


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    stop = StopFlag()
    stop.signal = signal.SIGTERM
    storage = Storage()
    storage.check = stop.check
    with pytest.raises(Interrupted):
        read_rank(storage, str(tmp_path / "nothing"), "f00d", 0)
