"""The index of completion records: a look with it is the look without it, whatever has happened to the records."""

from __future__ import annotations

import os
import stat
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.rundir import completion_index
from stagger.rundir.completion_index import read_table
from stagger.rundir.completion_table import MALFORMED, CompletionTable
from stagger.rundir.stage_folder import StageFolder, columns_of, encode
from stagger.storage import local_files
from stagger.storage.storage import Storage
from tests.kit.records import completion

RANKS = 6
HOUR_S = 3600.0

#: Every record gets this time of modification: nothing may depend on it alone.
WRITTEN_NS = 1_700_000_000 * 10**9


def record(rank: int, number: int) -> Any:
    """Records of a rank. Some numbers have other fields, and many the same size."""
    more: dict[str, Any] = (
        {"notes": {"schemas": {"out": [{"n": "int64"}]}}} if number % 2 else {"counts": {"pages": 10}}
    )
    step = {
        "name": "read_jsonl",
        "records": 100 + number,
        "seconds": 0.5,
        **({"counts": {"a": 1}} if number % 2 else {}),
    }
    outputs = [{"path": f"/out/{number % 3}/{rank}.jsonl", "bytes": 1, "records": 1, "digest": "crc32:0"}]
    retried = {"requests": {"throttled": number}, "waited_s": 0.25}
    return completion(rank, records_in=100 + number, steps=[step], outputs=outputs, retried=retried, **more)


def written(path: Path, data: bytes, *, in_place: bool) -> None:
    """Write a file, in place or as tasks do, until its change can be told by the time that the kernel notes."""
    before = os.stat(path).st_ctime_ns if path.exists() else 0
    while True:
        if in_place:
            path.write_bytes(data)
        else:
            Storage().write(str(path), data)
        os.utime(path, ns=(WRITTEN_NS, WRITTEN_NS))
        if os.stat(path).st_ctime_ns != before:
            return


def look(run: Path, *, keep: bool) -> list[Any] | str:
    """The columns of the table of all ranks, without how records are recognised; or the error."""
    folder = StageFolder(Storage(), str(run))
    try:
        return shown(read_table(folder, folder.done(), keep=keep))
    except StaggerError as error:
        return str(error)


def plain(run: Path) -> list[Any] | str:
    """The same without an index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion_index, "INDEXED", 10**6)
        return look(run, keep=False)


def shown(table: CompletionTable) -> list[Any]:
    sets = list(table.folder_sets)
    content = {**vars(table), "identity": None, "folder_sets": None, "folders": [sets[n] for n in table.folders]}
    return [*content.items(), *map(vars, table.steps)] if len(table) else []


CHANGES = st.one_of(
    st.tuples(st.just("done"), st.integers(0, RANKS - 1), st.integers(0, 9)),
    st.tuples(st.just("edited"), st.integers(0, RANKS - 1), st.integers(0, 9)),
    st.tuples(st.just("damaged"), st.integers(0, RANKS - 1), st.sampled_from(['{"rank"', "[]", '{"steps": 1}'])),
    st.tuples(st.just("removed"), st.integers(0, RANKS - 1), st.just(0)),
    st.tuples(st.just("index"), st.sampled_from([b"", b"x", b"cut"]), st.just(0)),
    st.tuples(st.just("clock"), st.sampled_from([0.0, HOUR_S, -HOUR_S]), st.just(0)),
    st.tuples(st.just("kept"), st.booleans(), st.just(0)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(looks=st.lists(st.lists(CHANGES, max_size=4), min_size=2, max_size=6))
def test_a_look_with_an_index_is_the_look_without(
    looks: list[list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run, keep = tmp_path_factory.mktemp("run", numbered=True), False
    made(run / "completions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion_index, "INDEXED", 1)
        patch.setattr(local_files, "SETTLED_S", 0.0)
        for changes in looks:
            for what, value, more in changes:
                if what == "clock":
                    patch.setattr(local_files, "SETTLED_S", value)
                elif what == "kept":
                    keep = value
                else:
                    change(run, what, value, more)
            assert look(run, keep=keep) == plain(run)
            assert look(run, keep=False) == plain(run)


def change(run: Path, what: str, value: Any, more: Any) -> None:
    path = run / "completions" / f"{value:05d}.json" if what != "index" else run / "completions.index"
    if what in ("done", "edited"):
        written(path, encode(record(value, more)), in_place=what == "edited")
    elif what == "damaged":
        written(path, more.encode(), in_place=True)
    elif what == "removed":
        path.unlink(missing_ok=True)
    elif path.exists():
        path.write_bytes(path.read_bytes()[:-9] if value == b"cut" else value)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the completion records of all ranks, of which a look makes an index."""
    monkeypatch.setattr(completion_index, "INDEXED", 1)
    for rank in range(RANKS):
        Storage().write(str(made(tmp_path / "run" / "completions") / f"{rank:05d}.json"), encode(record(rank, rank)))
    return tmp_path / "run"


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_by(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranks whose records a look reads."""
    folder, read = StageFolder(Storage(), str(run)), []
    reading = folder.reading

    def noted(ranks: set[int], *, keep: bool) -> Any:
        read.extend(sorted(ranks))
        return reading(ranks, keep=keep)

    monkeypatch.setattr(folder, "reading", noted)
    read_table(folder, folder.done(), keep=False)
    return read


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an hour pass."""
    monkeypatch.setattr(local_files, "SETTLED_S", -HOUR_S)


def test_the_next_look_reads_what_is_new_or_changed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    assert read_by(run, monkeypatch) == list(range(RANKS))
    assert read_by(run, monkeypatch) == []
    written(run / "completions" / "00002.json", encode(record(2, 8)), in_place=True)
    (run / "completions" / "00004.json").unlink()
    assert read_by(run, monkeypatch) == [2]
    Storage().write(str(run / "completions" / "00009.json"), encode(record(9, 1)))
    assert read_by(run, monkeypatch) == [9]


def test_a_record_that_may_change_within_the_same_tick_is_read_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert read_by(run, monkeypatch) == list(range(RANKS))


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_an_index_that_others_can_write_is_not_used(run: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    read_by(run, monkeypatch)
    index = run / "completions.index"
    assert stat.S_IMODE(index.stat().st_mode) & 0o022 == 0
    index.chmod(mode)
    assert read_by(run, monkeypatch) == list(range(RANKS))


def test_where_the_index_cannot_be_written_the_look_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    (run / "completions.index").mkdir()
    assert read_by(run, monkeypatch) == read_by(run, monkeypatch) == list(range(RANKS))


def test_a_record_with_another_number_of_steps_is_named(run: Path) -> None:
    Storage().write(str(run / "completions" / "00003.json"), encode({**record(3, 3), "steps": []}))
    assert look(run, keep=False) == (
        f"{run}/completions/00003.json is damaged (it has 0 steps, other records of the stage 1); restore or remove it."
    )


def test_records_that_are_removed_after_the_listing_are_left_out(run: Path) -> None:
    for gone in ([1, 4], range(RANKS)):
        folder = StageFolder(Storage(), str(run))
        done = folder.done()
        for rank in gone:
            (run / "completions" / f"{rank:05d}.json").unlink(missing_ok=True)
        table = read_table(folder, done, keep=False)
        left = sorted(folder.done())
        assert list(table.rank) == left
        assert list(table.records_in) == [100 + rank for rank in left]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("records_in", 1.5), ("retried", {}), ("bad_records", [0]), ("outputs", [0]), ("steps", [{}]), ("notes", [0])],
)
def test_a_table_takes_all_of_some_records_or_none(field: str, wrong: Any) -> None:
    table = CompletionTable()
    for ranks in ([0, 1], [2, 3]):
        records = [record(rank, rank) for rank in ranks]
        damaged = [records[0], {**records[1], field: wrong}]
        before = deepcopy(shown(table))
        with pytest.raises(MALFORMED):
            table.append(ranks, [0, 0], damaged, columns_of(damaged))
        assert shown(table) == before
        table.append(ranks, [0, 0], records, columns_of(records))
        assert {len(column) for column in table.columns()} == {ranks[-1] + 1}


def test_a_wrong_number_in_a_record_is_named_also_when_the_index_knows_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    Storage().write(str(run / "completions" / "00003.json"), encode({**record(3, 3), "records_in": -7}))
    for _ in range(2):
        folder = StageFolder(Storage(), str(run))
        with pytest.raises(StaggerError, match=r"00003\.json is damaged \(records_in is -7\)"), folder.blaming():
            raise_for_negative(read_table(folder, folder.done(), keep=False))


def raise_for_negative(table: CompletionTable) -> None:
    if min(table.records_in) < 0:
        raise OverflowError
