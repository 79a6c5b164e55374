"""What datatrove's blocks write is invisible until the rank is done; until then they read it back and overwrite it."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

from datatrove.io import DataFolder, OutputFileManager, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.stats import DocStats
from datatrove.pipeline.writers import JsonlWriter, ParquetWriter

from stagger import Document
from stagger.datatrove.patches import METHODS, committed_with
from stagger.errors import StaggerError
from stagger.pipeline.task_context import TaskContext
from stagger.rundir.stage_folder import StageFolder, encode
from stagger.storage.storage import Storage
from stagger.task import Superseded
from stagger.task.commit import RankCommit
from stagger.terminal import logger
from tests.conftest import Bucket, contents
from tests.kit.commits import commit


def documents(count: int = 12) -> Iterator[Document]:
    return (Document(f"text {n}", str(n), metadata={"lang": "de" if n % 3 else "en"}) for n in range(count))


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def ran(*steps: Any, data: Iterable[Document] | None = None, storage: Storage | None = None) -> TaskContext:
    """A task of rank 2 that has run the steps, and has not committed."""
    task = TaskContext(storage or Storage(), 2, 4, [], "tag-1")
    with committed_with(task):
        stream: Any = documents() if data is None else data
        for step in steps:
            stream = step(stream, 2, 4)
        for _ in stream or ():
            pass
        task.finish()
    return task


def records(task: TaskContext, folder: Path) -> dict[str, tuple[int, bool]]:
    """File -> its records, and whether it is beside the result."""
    return {
        str(Path(file.output.path).relative_to(folder)): (file.records, file.aside)
        for file in task.outputs
        if Path(file.output.path).is_relative_to(folder)
    }


def test_writers_also_those_of_what_is_removed_appear_when_the_rank_is_done(tmp_path: Path) -> None:
    removed = JsonlWriter(str(tmp_path / "removed"), output_filename="${lang}/${rank}.jsonl.zst", compression="infer")
    task = ran(
        LambdaFilter(lambda document: int(document.id) % 2 == 0, exclusion_writer=removed),
        JsonlWriter(str(tmp_path / "kept")),
        ParquetWriter(str(tmp_path / "parts"), max_file_size=100, batch_size=2),
    )
    assert visible(tmp_path) == []
    commit(task)
    assert records(task, tmp_path) == {
        "removed/de/00002.jsonl.zst": (4, True),
        "removed/en/00002.jsonl.zst": (2, True),
        "kept/00002.jsonl.gz": (6, False),
        **{f"parts/{number:03d}_00002.parquet": (2, False) for number in range(3)},
    }
    lines = gzip.decompress((tmp_path / "kept" / "00002.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(n) for n in range(0, 12, 2)]
    assert visible(tmp_path) == sorted(records(task, tmp_path))


def test_the_content_is_that_of_datatrove_alone(tmp_path: Path) -> None:
    def run(folder: Path) -> None:
        kept = JsonlWriter(str(folder / "plain"), compression=None)
        for _ in kept(DocStats(str(folder / "stats"), groups_to_compute=["summary"])(documents(), 2, 4), 2, 4):
            pass

    run(tmp_path / "alone")
    task = TaskContext(Storage(), 2, 4, [], "tag-1")
    with committed_with(task):
        run(tmp_path / "attempt")
        commit(task)
    names = visible(tmp_path / "alone")
    assert len(names) > 5
    assert visible(tmp_path / "attempt") == names
    for name in names:
        assert (tmp_path / "attempt" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


class Rewrites(PipelineStep):  # type: ignore[misc]
    """A block that does with its own files what datatrove's blocks do."""

    def __init__(self, folder: Any) -> None:
        super().__init__()
        self.output_folder = get_datafolder(folder)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        folder = self.output_folder
        assert not folder.exists("a/1.bin")
        with folder.open("a/1.bin", "wb") as file:
            file.write(b"first")
        assert folder.exists("a/1.bin")
        assert folder.isfile("a/1.bin")
        assert (folder.size("a/1.bin"), folder.info("a/1.bin")["type"]) == (5, "file")
        with folder.open("a/1.bin") as file:
            content = file.read()
        with folder.open("a/1.bin", "wb") as file:
            file.write(content[::-1])
        with folder.open("a/1.bin", "ab") as file:
            file.write(b"!")
        for name in ("gone", "a/2.bin"):
            folder.open(name, "wt").close()
        folder.rm_file("gone")
        assert not folder.exists("gone")
        assert folder.list_files() == folder.list_files(glob_pattern="*/*.bin") == ["a/1.bin", "a/2.bin"]
        assert folder.list_files(recursive=False) == []
        self.left_open = folder.open("open.txt", "wt")
        self.left_open.write("not closed")
        yield from data


def test_a_block_reads_back_overwrites_lists_and_removes_its_own_files(tmp_path: Path) -> None:
    task = ran(Rewrites(str(tmp_path)))
    assert visible(tmp_path) == []
    commit(task)
    assert visible(tmp_path) == ["a/1.bin", "a/2.bin", "open.txt"]
    assert (tmp_path / "a" / "1.bin").read_bytes() == b"tsrif!"
    assert (tmp_path / "open.txt").read_text() == "not closed"
    assert {file.output.path: file.output.size for file in task.outputs}[f"{tmp_path}/a/1.bin"] == 6
    assert all(str(file.output.digest).startswith("crc32:") for file in task.outputs)


def test_on_s3_too(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    folders = [f"{bucket.url}/rewritten", f"{bucket.url}/lines"]
    task = ran(Rewrites(folders[0]), JsonlWriter(folders[1], compression=None))
    assert bucket.files.find(bucket.name) == []
    commit(task)
    found = {path.removeprefix(f"{bucket.name}/"): bucket.files.cat(path) for path in bucket.files.find(bucket.name)}
    assert sorted(found) == ["lines/00002.jsonl", "rewritten/a/1.bin", "rewritten/a/2.bin", "rewritten/open.txt"]
    assert found["rewritten/a/1.bin"] == b"tsrif!"
    assert len(found["lines/00002.jsonl"].splitlines()) == 12


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    def failing() -> Iterator[Document]:
        yield from documents(5)
        raise ValueError("no further")

    task = TaskContext(Storage(), 2, 4, [], "tag-1")
    with pytest.raises(ValueError, match="no further"), committed_with(task):
        for _ in JsonlWriter(str(tmp_path))(Rewrites(str(tmp_path / "rewritten"))(failing(), 2, 4), 2, 4):
            pass
    task.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_hidden_files_of_other_attempts_are_in_no_listing(tmp_path: Path) -> None:
    """A stage of datatrove numbers the files that it finds."""
    task = ran(JsonlWriter(str(tmp_path), compression=None))
    assert len(contents(tmp_path)) == 1
    (tmp_path / "1.jsonl").touch()
    (tmp_path / ".profile").touch()
    with committed_with(TaskContext(Storage(), 0, 1, [], "tag-1")):
        folder = get_datafolder(str(tmp_path))
        assert folder.list_files() == [".profile", "1.jsonl"]
        assert folder.list_files(glob_pattern="*.*") == [".profile", "1.jsonl"]
    task.abort()


def test_a_superseded_attempt_shows_nothing(tmp_path: Path) -> None:
    folder = StageFolder(Storage(), str(tmp_path / "run"))

    def publish(task: TaskContext, attempt: str) -> None:
        files = [file.output for file in task.outputs]
        record = encode({"attempt": attempt})
        RankCommit(folder, 2, attempt, "7", repeated=attempt != "1").publish(files, folder.completion(2), record, set())

    old = ran(DocStats(str(tmp_path / "out"), groups_to_compute=["summary"]), data=documents(3))
    new = ran(DocStats(str(tmp_path / "out"), groups_to_compute=["summary"]))
    publish(new, "1r1")
    with pytest.raises(Superseded):
        publish(old, "1")
    old.abort()
    found = json.loads((tmp_path / "out/summary/length/00002.json").read_text())
    assert found["summary"]["n"] == 12
    assert list((tmp_path / "out").rglob(".*")) == []


def test_two_blocks_that_write_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match=r"Two steps write .*00002\.jsonl"):
        ran(JsonlWriter(str(tmp_path), compression=None), JsonlWriter(str(tmp_path), compression=None))


def test_what_is_there_already_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before")
    with committed_with(TaskContext(Storage(), 0, 1, [], "tag-1")):
        folder = get_datafolder(str(tmp_path))
        for mode in ("at", "r+b"):
            with pytest.raises(StaggerError, match="a block changes it"):
                folder.open("log", mode)
        with pytest.raises(FileNotFoundError):
            folder.open("missing", "r+b")
    assert contents(tmp_path) == {"log": b"before"}


def test_a_writer_of_the_hub_uploads_what_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datatrove.pipeline.writers import huggingface

    sent: dict[str, bytes] = {}

    def upload(dataset: str, additions: list[Any], **more: Any) -> None:
        sent.update({one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in additions})

    monkeypatch.setattr(huggingface, "preupload_lfs_files", upload)
    for name in ("create_repo", "create_commit"):
        monkeypatch.setattr(huggingface, name, lambda *arguments, **more: None)
    task = ran(huggingface.HuggingFaceDatasetWriter("a/b", local_working_dir=str(tmp_path)))
    assert [len(data) > 500 and data[-4:] == b"PAR1" for data in sent.values()] == [True]
    assert task.outputs == []  # It removes what it has uploaded.


def test_what_cannot_be_committed_is_said_and_written_at_once() -> None:
    said: list[str] = []
    handler = logger.add(said.append)
    with committed_with(task := TaskContext(Storage(), 0, 1, [], "tag-1")):
        folder = get_datafolder("memory://elsewhere")
        for name in "ab":
            folder.open(name, "wt").close()
        assert folder.exists("a")
    assert task.outputs == []
    folder.rm("a")
    logger.remove(handler)
    assert ["a block writes there at once, not when the rank is done" in line for line in said] == [True]


def later(data: Iterable[Document], rank: int, world_size: int, *, folder: str) -> Any:
    """Imports datatrove when it is called."""
    from datatrove.pipeline.writers import JsonlWriter

    return JsonlWriter(folder).run(data, rank, world_size)


def test_a_function_may_import_datatrove_in_its_call(tmp_path: Path) -> None:
    gone = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "datatrove"}
    try:
        task = ran(lambda data, rank, world_size: later(data, rank, world_size, folder=str(tmp_path)))
        assert visible(tmp_path) == []
        commit(task)
        assert records(task, tmp_path) == {"00002.jsonl.gz": (12, False)}
        assert sys.modules["datatrove.io"] is not gone["datatrove.io"]
    finally:
        for name in [*sys.modules]:
            if name.partition(".")[0] == "datatrove":
                del sys.modules[name]
        sys.modules.update(gone)


def test_datatrove_is_as_it_was_afterwards(tmp_path: Path) -> None:
    import datatrove.pipeline.writers.disk_base as disk_base
    from datatrove.pipeline.base import PipelineStep

    def methods() -> dict[str, Callable[..., Any] | None]:
        kinds = {one.__name__: one for one in (DataFolder, OutputFileManager, disk_base.DiskWriter, PipelineStep)}
        return {f"{kind}.{name}": vars(kinds[kind]).get(name) for rows in METHODS.values() for kind, name, _ in rows}

    before, finders = methods(), [*sys.meta_path]
    with committed_with(TaskContext(Storage(), 0, 1, [], "tag-1")):
        assert all(method is not before[name] for name, method in methods().items())
    assert (methods(), sys.meta_path) == (before, finders)
    with pytest.raises(ValueError, match="no"), committed_with(TaskContext(Storage(), 0, 1, [], "tag-1")):
        raise ValueError("no")
    assert (methods(), sys.meta_path) == (before, finders)
