"""`stagger status --watch`."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.cli import show
from stagger.status.stage_status import StageStatus


@pytest.mark.parametrize(("terminal", "clears"), [(True, 2), (False, 0)])
def test_watch_draws_over_itself_on_a_terminal_and_leaves_slurm_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, clears: int
) -> None:
    def line(**states: Any) -> StageStatus:
        account = {"peak_1s": 0, "peak_100ms": 0, "span_s": 0.0, "per_second": []}
        return StageStatus("held", 3, **states, starts={"planned": account, "measured": account})

    seen = [[line(running=1, sleeping=1, pending=1, cancelled=1)], [line(done=3)]]
    clock = iter([0.0, 2.0, 100.0, 101.0])
    slept: list[float] = []
    monkeypatch.setattr(show, "status_of", lambda *_: ({}, seen.pop(0)))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    folder: Any = type("Folder", (), {"path": "/run"})
    _, (last,) = show.watch_status(folder, folder, ["held"], silent=False)
    assert last.done == 3
    assert slept == [20.0]  # Refreshing took 2 s, and may take at most a tenth of the time.
    out = capsys.readouterr().out
    assert out.count(show.CLEAR) == clears
    assert "3 ranks: 1 running, 1 sleeping, 1 pending (1 cancelled)" in out
