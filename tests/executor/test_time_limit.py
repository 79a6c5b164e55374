"""A time limit that reads otherwise than it was probably meant is said."""

from __future__ import annotations

from pathlib import Path

import loguru
import pytest

from stagger.executor.slurm_start import SlurmStart
from stagger.rundir.run_folder import StageInput
from stagger.spec.load import load_file


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("1:30", "p: the time limit 1:30 is 1 min 30 s, as Slurm reads it; for hours and minutes write 1:30:00"),
        ("'90'", ""),
        ("90", ""),
        ("12:30:00", ""),
        ("1-12", ""),
    ],
)
def test_minutes_and_seconds_are_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"name: p\nrun_dir: run\npipeline: [read_jsonl: {{path: in}}]\nexecutor: {{type: slurm, time: {time}}}\n"
    Path("p.yaml").write_text(text)
    spec = load_file("p.yaml")
    messages: list[str] = []
    sink = loguru.logger.add(lambda message: messages.append(message.record["message"]))
    try:
        SlurmStart(spec, spec.stages[0], StageInput()).advise(1)
    finally:
        loguru.logger.remove(sink)
    assert messages == ([said] if said else [])
