"""`stagger doctor --measure-metadata`: what it does in a shared folder, and what it advises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stagger.doctor import metadata
from stagger.doctor.metadata import Rate, check_of, limit_of, measured
from stagger.errors import StaggerError
from tests.conftest import Cli


def test_the_measurement_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("data")
    rates = measured(str(tmp_path), seconds=0.05)
    assert [rate.processes for rate in rates] in ([1, 2], [1, 2, 4])
    assert all(rate.per_s > 0 for rate in rates)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "data"


def test_no_more_processes_are_tried_when_they_get_no_more_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {1: 1000.0, 2: 1100.0, 4: 9000.0}
    monkeypatch.setattr(metadata, "rate_of", lambda folder, processes, seconds: Rate(processes, answers[processes]))
    assert measured(str(tmp_path)) == [Rate(1, 1000.0), Rate(2, 1100.0)]
    answers[2] = 1900.0
    assert measured(str(tmp_path)) == [Rate(1, 1000.0), Rate(2, 1900.0), Rate(4, 9000.0)]


def test_an_interrupted_measurement_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: str, processes: int, seconds: float) -> Rate:
        Path(folder, "1-1").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(metadata, "rate_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_advice_is_half_of_what_a_shared_file_system_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [Rate(1, 9000.0), Rate(2, 15_850.0), Rate(4, 14_000.0)]
    assert limit_of(rates) == 7900
    growing = [Rate(1, 1000.0), Rate(2, 2000.0), Rate(4, 4000.0)]
    monkeypatch.setattr(metadata, "file_system", lambda folder: "lustre")
    check = check_of(str(tmp_path), rates)
    assert check.state == "ok"
    assert "(lustre): 1 process 9,000/s; 2 processes 15,850/s; 4 processes 14,000/s." in check.text
    assert "at least 15,850 operations/s. 50% of that" in check.text
    assert "metadata_limit: 7900" in check.text
    assert "at least 4,000 operations/s, and more to more processes." in check_of(str(tmp_path), growing).text
    monkeypatch.setattr(metadata, "file_system", lambda folder: "ext4")
    check = check_of(str(tmp_path), rates)
    assert check.state == "warning"
    assert "metadata_limit" not in check.text


def test_a_process_that_fails_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "PROGRAM", "print('ready', flush=True); input(); raise OSError('Disk quota exceeded')"
    )
    with pytest.raises(StaggerError, match="the measurement failed: OSError: Disk quota exceeded"):
        measured(str(tmp_path), seconds=0.05)
    assert list(tmp_path.iterdir()) == []


def test_doctor_measures_on_request_and_says_it_first(cli: Cli, tmp_path: Path) -> None:
    made = cli("doctor", "--measure-metadata", tmp_path / "none", check=2)
    assert "there is no such folder; name a folder of the shared file system" in made.err
    made = cli("doctor", "--measure-metadata", "s3://bucket", check=2)
    assert "an object store has no metadata server" in made.err
    made = cli("doctor", "--measure-metadata", os.fspath(tmp_path), check=0)
    assert made.out.index("The folder is then removed.") < made.out.index("metadata ")
    found = cli("doctor", "--measure-metadata", tmp_path, "--json", check=0).json
    assert found["metadata"]["rates"][0]["processes"] == 1
