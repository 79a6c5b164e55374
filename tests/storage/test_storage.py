"""Storage on a file system: atomic, exclusive, and with clear errors."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from stagger.errors import BadInput, StaggerError
from stagger.storage import Entry
from stagger.storage.storage import Storage, absolute, expand_variables, join


def test_paths_are_joined_and_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert join("s3://b/run/", "a", "b") == "s3://b/run/a/b"
    assert join("/run", "s3://b/x") == "s3://b/x"
    assert join("s3://b/run", "/abs") == "/abs"
    assert absolute("x/../y") == str(tmp_path / "y")
    assert absolute("~/y") == "/home/me/y"
    assert absolute("file:///y") == "/y"
    assert absolute("s3://b/y/") == "s3://b/y"


def test_an_output_is_invisible_until_it_is_committed(tmp_path: Path) -> None:
    output = Storage().output(str(tmp_path / "new" / "out"), "tag")
    output.write(b"half")
    assert not (tmp_path / "new" / "out").exists()
    output.write(b" and half")
    output.finish()
    assert not (tmp_path / "new" / "out").exists()
    output.commit(lambda: None, "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert (tmp_path / "new" / "out").read_bytes() == b"half and half"


def test_two_processes_may_make_the_same_folders_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def overtaken(path: str, mode: int = 0o777) -> None:
        try:
            mkdir(path, mode)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path))  # Another process makes the parent right after this one has missed it.
            raise

    monkeypatch.setattr(os, "mkdir", overtaken)
    Storage().write(str(tmp_path / "logs" / "00001" / "1.json"), b"{}")
    assert (tmp_path / "logs" / "00001" / "1.json").read_bytes() == b"{}"
    with pytest.raises(StaggerError, match="cannot be created"):
        Storage().write("/proc/nobody/x", b"")


def test_an_aborted_output_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    output = Storage().output(str(tmp_path / "out"), "tag")
    output.write(b"new")
    output.abort()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_two_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    one, other = (Storage().output(str(tmp_path / "out"), tag) for tag in ("1", "2"))
    one.write(b"one")
    other.write(b"other")
    for output in (one, other):
        output.finish()
        output.commit(lambda: None, "")
    assert (tmp_path / "out").read_bytes() == b"other"


def test_leftovers_of_this_run_are_removed_and_of_no_other(tmp_path: Path) -> None:
    for tag in ("f00df00d-1", "f00df00d-2r1", "beefbeef-1"):
        Storage().output(str(tmp_path / "out"), tag)
    (tmp_path / ".hidden").touch()
    Storage().remove_leftovers(str(tmp_path), "f00df00d")
    hidden, other = sorted(path.name for path in tmp_path.iterdir())
    assert (hidden, other.rpartition("-")[0]) == (".hidden", ".out.beefbeef-1")


def _create(path: str, gate: multiprocessing.synchronize.Event, wins: multiprocessing.SimpleQueue[bool]) -> None:
    gate.wait()
    wins.put(Storage().create(path, str(os.getpid()).encode()))


def test_of_many_that_create_at_once_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, wins = context.Event(), context.SimpleQueue()
    arguments = (str(tmp_path / "lock"), gate, wins)
    processes = [context.Process(target=_create, args=arguments) for _ in range(20)]
    for process in processes:
        process.start()
    gate.set()
    results = [wins.get() for _ in processes]
    for process in processes:
        process.join()
    assert results.count(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert int((tmp_path / "lock").read_bytes()) in {process.pid for process in processes}


def test_lists_and_reads(tmp_path: Path) -> None:
    storage = Storage()
    storage.write(str(tmp_path / "b"), b"12345")
    storage.write(str(tmp_path / "sub" / "a"), b"1", private=True)
    assert sizes(storage.list(str(tmp_path))) == {"b": 5}
    assert storage.list(str(tmp_path / "nothing")) == []
    assert sizes(storage.walk(str(tmp_path))) == {"b": 5, "sub/a": 1}
    assert storage.read_range(str(tmp_path / "b"), 1, 3) == b"23"
    assert storage.read_many([str(tmp_path / "b"), str(tmp_path / "gone")]) == [b"12345", None]
    assert stat.S_IMODE((tmp_path / "sub" / "a").stat().st_mode) == 0o600
    storage.remove(str(tmp_path / "b"))
    storage.remove(str(tmp_path / "b"))
    assert storage.entry(str(tmp_path / "b")) is None


def sizes(entries: Iterable[Entry]) -> dict[str, int]:
    return {entry.name: entry.size for entry in entries}


def test_a_local_file_has_its_time_of_modification_as_version(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    entry = Entry("a", 2, "mtime:1700000000123456789")
    assert Storage().list(str(tmp_path)) == list(Storage().walk(str(tmp_path))) == [entry]
    assert Storage().entry(str(path)) == entry._replace(name=str(path))
    assert b"".join(Storage().stream(str(path), 2, entry.version)) == b"12"
    os.utime(path, ns=(5, 1_700_000_000_123_456_790))
    with pytest.raises(BadInput, match="the file has been replaced or modified since the plan was made"):
        list(Storage().stream(str(path), 2, entry.version))


@pytest.mark.parametrize("how", ["list", "walk"])
def test_a_file_that_goes_while_its_folder_is_listed_hides_no_other(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary files of writes vanish like this. An empty listing of a registry would mean a swarm without servers."""
    scan = os.scandir

    @contextlib.contextmanager
    def late(folder: str) -> Iterator[list[os.DirEntry[str]]]:
        """A folder's entries, of which one is renamed and one removed before they are returned."""
        with scan(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        (tmp_path / ".b.tmp").rename(tmp_path / "b")
        (tmp_path / "c").unlink()
        yield entries

    for name in ("a", ".b.tmp", "c"):
        (tmp_path / name).write_bytes(b"12")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", late)
        assert sizes(getattr(Storage(), how)(str(tmp_path))) == {"a": 2}
    assert sizes(Storage().list(str(tmp_path))) == {"a": 2, "b": 2}


def test_a_large_folder_comes_in_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"{number}" for number in range(9)}
    for name in names:
        (tmp_path / name).write_bytes(b"12")
        (tmp_path / f"folder-{name}").mkdir()
        (tmp_path / f"folder-{name}" / "file").touch()
    monkeypatch.setattr("stagger.storage.local_files.LISTED_AT_ONCE", 2)
    parts = [list(files.names) for files in Storage().listed(str(tmp_path), recursive=False)]
    assert all(part == sorted(part) and len(part) <= 2 for part in parts)
    assert sorted(name for part in parts for name in part) == sorted(names)
    expected = dict.fromkeys(names, 2) | {f"folder-{name}/file": 0 for name in names}
    assert sizes(Storage().walk(str(tmp_path))) == expected


def test_a_link_into_the_tree_is_refused_and_one_out_of_it_followed(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for folder in (tree, outside):
        folder.mkdir()
        (folder / "file").write_bytes(b"12")
    (tree / "out").symlink_to(outside)
    assert sizes(Storage().walk(str(tree))) == {"file": 2, "out/file": 2}
    (outside / "back").symlink_to(tree)
    with pytest.raises(StaggerError, match="is a link to a folder that is listed already"):
        list(Storage().walk(str(tree)))


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StaggerError, match="file is not a folder"):
        Storage().check_writable(str(tmp_path / "file" / "run"))
    Storage().check_writable(str(tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists()


def test_an_unknown_protocol_is_said() -> None:
    with pytest.raises(StaggerError, match="Cannot open nonesuch:// paths"):
        Storage().read("nonesuch://x/y")


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    assert expand_variables({"x": ["${A}${A}", "$${A}", "$A", 5]}) == {"x": ["11", "${A}", "$A", 5]}
