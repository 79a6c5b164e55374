"""The commit of a rank: who may, what it replaces, and what a commit that fails leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from stagger.errors import StaggerError
from stagger.rundir.commit_claims import claim_path
from stagger.rundir.stage_folder import StageFolder, encode
from stagger.storage import Output
from stagger.storage.storage import Storage
from stagger.task import Committed, Superseded
from stagger.task.commit import RankCommit

RANK = 3


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder(Storage(), str(tmp_path / "run"))


def finished(folder: Path, *names: str, text: str = "x") -> list[Output]:
    outputs = [Storage().output(str(folder / name), "tag") for name in names]
    for output in outputs:
        output.write(text.encode())
        output.finish()
    return outputs


def publish(folder: StageFolder, attempt: str, files: Sequence[Output]) -> None:
    keep = {file.path for file in files}
    commit = RankCommit(folder, RANK, attempt, "7", repeated=attempt != "1")
    commit.publish(files, folder.completion(RANK), encode({"attempt": attempt}), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_commit_shows_its_files_and_then_its_record(folder: StageFolder, tmp_path: Path) -> None:
    publish(folder, "1", finished(tmp_path / "out", "a", "b"))
    assert names(tmp_path / "out") == ["a", "b"]
    assert folder.done() == {RANK}
    assert names(tmp_path / "run" / "commits") == ["00003.1.json"]


def test_a_commit_removes_exactly_what_an_earlier_attempt_wrote_beside_it(folder: StageFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "another-ranks").touch()
    publish(folder, "1", finished(tmp_path / "out", "a", "b", "c", "d"))
    folder.storage.remove(folder.completion(RANK))  # As a user does who wants it to run again.
    (tmp_path / "out" / "d").write_text("replaced by hand since")
    publish(folder, "2", finished(tmp_path / "out", "a", "e", text="later"))
    assert names(tmp_path / "out") == ["a", "another-ranks", "d", "e"]
    assert (tmp_path / "out" / "a").read_text() == "later"


def test_an_attempt_after_a_later_claim_is_superseded_and_leaves_its_files_alone(
    folder: StageFolder, tmp_path: Path
) -> None:
    old = finished(tmp_path / "out", "a", text="old")
    publish(folder, "1r1", finished(tmp_path / "out", "a", text="new"))
    with pytest.raises(Superseded, match=r"Attempt 1r1 of this rank .* has claimed the commit: attempt 1 was taken"):
        publish(folder, "1", old)
    old[0].abort()
    assert (names(tmp_path / "out"), (tmp_path / "out" / "a").read_text()) == (["a"], "new")


def test_a_claim_makes_the_commits_of_earlier_attempts_impossible(folder: StageFolder, tmp_path: Path) -> None:
    old = finished(tmp_path / "out", "a", text="old")
    commit = RankCommit(folder, RANK, "1", "7", repeated=False)
    record = folder.storage.output(folder.completion(RANK), "tag")
    record.finish()
    commit._claim(old, record)
    publish(folder, "2", finished(tmp_path / "out", "a", text="new"))
    with pytest.raises(Superseded):
        commit._show(old, record, set())
    assert (tmp_path / "out" / "a").read_text() == "new"


def test_an_attempt_leaves_a_rank_as_it_is_that_an_earlier_one_has_committed(
    folder: StageFolder, tmp_path: Path
) -> None:
    publish(folder, "1", finished(tmp_path / "out", "a", text="old"))
    late = finished(tmp_path / "out", "a", "b", text="new")
    with pytest.raises(Committed):
        publish(folder, "2", late)
    for output in late:
        output.abort()
    assert (names(tmp_path / "out"), (tmp_path / "out" / "a").read_text()) == (["a"], "old")


def test_a_commit_that_fails_in_the_middle_takes_back_what_it_showed(folder: StageFolder, tmp_path: Path) -> None:
    (tmp_path / "out" / "c").mkdir(parents=True)
    files = finished(tmp_path / "out", "a", "b", "c", "d")
    with pytest.raises(IsADirectoryError):
        publish(folder, "1", files)
    for output in files:
        output.abort()
    assert names(tmp_path / "out") == ["c"]
    assert folder.done() == set()


def test_what_is_taken_back_is_provably_the_attempts_own(tmp_path: Path) -> None:
    (output,) = finished(tmp_path, "a")
    output.commit(lambda: None, "")
    (other,) = finished(tmp_path, "a", text="other")
    other.commit(lambda: None, "")
    output.withdraw()
    assert (tmp_path / "a").read_text() == "other"
    other.withdraw()
    assert names(tmp_path) == []


def test_a_damaged_claim_is_named(folder: StageFolder, tmp_path: Path) -> None:
    folder.storage.write(claim_path(folder, RANK, 1), b'{"attempt": "1"')
    with pytest.raises(StaggerError, match=r"commits/00003\.1\.json is damaged"):
        publish(folder, "2", finished(tmp_path / "out", "a"))


def test_a_claim_that_was_removed_by_hand_stops_nobody(folder: StageFolder, tmp_path: Path) -> None:
    for attempt in ("1", "2"):
        publish(folder, attempt, finished(tmp_path / "out", "a", text=attempt))
        folder.storage.remove(folder.completion(RANK))
    folder.storage.remove(claim_path(folder, RANK, 1))
    publish(folder, "3", finished(tmp_path / "out", "a", text="3"))
    assert (tmp_path / "out" / "a").read_text() == "3"
    assert names(tmp_path / "run" / "commits") == ["00003.1.json", "00003.2.json", "00003.3.json"]


@pytest.mark.parametrize("change", [{"files": 5}, {"attempt": []}, {"record": None}, {"files": [{"path": 1}]}])
def test_a_claim_with_a_value_of_another_kind_is_named(
    folder: StageFolder, tmp_path: Path, change: dict[str, object]
) -> None:
    publish(folder, "1", finished(tmp_path / "out", "a"))
    path = claim_path(folder, RANK, 1)
    folder.storage.write(path, encode({**json.loads(folder.storage.read(path)), **change}))
    with pytest.raises(StaggerError, match=r"commits/00003\.1\.json is damaged"):
        publish(folder, "2", finished(tmp_path / "out", "a"))
