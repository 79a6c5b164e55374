"""Tests of what a reader takes for input: files that other programs left beside the data are named, not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagger import ReadJsonl, StaggerError
from stagger.steps.listing import input_files, unread_folders
from stagger.storage.storage import Storage


def tree(folder: Path, *names: str, content: str = '{"text": "x"}\n') -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def names(folder: Path, **options: object) -> list[str]:
    return [shard.name for shard in ReadJsonl(str(folder), **options).find_shards(Storage())]  # type: ignore[arg-type]


def left_out(folder: Path, glob: str = "*", *, recursive: bool = True) -> str:
    return str(input_files(Storage(), str(folder), glob, recursive=recursive)[1])


NOT_DATA = (
    "_SUCCESS",
    "_committed_123",
    "_started_123",
    "_metadata",
    "_common_metadata",
    "_delta_log/00000.json",
    "_temporary/0/part-0",
    "_spark_metadata/0",
    ".a.jsonl.crc",
    ".part",
    "._a.jsonl",
    ".git/config",
    ".ipynb_checkpoints/a.jsonl",
    "part-0.crc",
    "b.jsonl._COPYING_",
    "d/_x/e/f.jsonl",
)


@pytest.mark.parametrize("name", NOT_DATA)
def test_what_other_programs_leave_beside_the_data_is_not_input_and_named(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "a.jsonl", "d/b.jsonl", name)
    assert names(tmp_path, recursive=True) == ["a.jsonl", "d/b.jsonl"]
    assert left_out(tmp_path).startswith("1 name is not input")
    assert name in left_out(tmp_path)


@pytest.mark.parametrize(
    "name", ["year=2024/a.jsonl", "_year=2024/a.jsonl", "a_/b_.jsonl", "a.crc.jsonl", "a. b", "$folder$", "x_$folder$"]
)
def test_data_with_odd_names_is_input(tmp_path: Path, name: str) -> None:
    tree(tmp_path, name)
    assert names(tmp_path, recursive=True) == [name]
    assert left_out(tmp_path) == ""


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("_*.jsonl", "_a.jsonl"),
        ("._a*", "._a.jsonl"),
        ("_delta_log/*.json", "_delta_log/00000.json"),
        ("**/_x/**/*.jsonl", "d/_x/e/f.jsonl"),
        ("*.crc", "part-0.crc"),
        ("*._COPYING_", "b.jsonl._COPYING_"),
    ],
)
def test_a_glob_that_names_them_reads_them(tmp_path: Path, glob: str, name: str) -> None:
    tree(tmp_path, "a.jsonl", name, "_SUCCESS")
    assert names(tmp_path, recursive=True, glob=glob) == [name]


def test_a_file_that_is_named_itself_is_read(tmp_path: Path) -> None:
    tree(tmp_path, "_a.jsonl", ".b.jsonl")
    assert names(tmp_path / "_a.jsonl") == [str(tmp_path / "_a.jsonl")]
    (tmp_path / "paths").write_text("_a.jsonl\n.b.jsonl\n")
    assert names(tmp_path, paths_file=str(tmp_path / "paths")) == ["_a.jsonl", ".b.jsonl"]


def test_what_the_glob_does_not_match_is_not_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a.jsonl", "_SUCCESS", "_b.jsonl")
    assert left_out(tmp_path, "*.jsonl") == (
        "1 name is not input, unless glob names them (as glob: _*): names that begin with '_' or '.' (1): _b.jsonl"
    )
    assert left_out(tmp_path, "a*") == ""


def test_an_empty_marker_of_hadoop_is_not_input(tmp_path: Path) -> None:
    tree(tmp_path, "d_$folder$", content="")
    tree(tmp_path, "d/a.jsonl")
    assert names(tmp_path, recursive=True) == ["d/a.jsonl"]
    assert left_out(tmp_path) == "1 name is not input: folder markers (1): d_$folder$"


def test_a_folder_of_nothing_else_is_an_error_that_names_them(tmp_path: Path) -> None:
    tree(tmp_path, "_SUCCESS", "_a", "_b", ".c", ".d")
    with pytest.raises(StaggerError, match=r"matches '\*'.*5 names are not input, unless glob names them.* and 2 more"):
        names(tmp_path)


def test_folders_whose_files_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "x/b.jsonl", "y/z/c.jsonl", "_temporary/d.jsonl", "other/e.txt", "empty/_f.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert unread_folders(str(tmp_path), "*.jsonl", 1) == (
        f"2 folders in {tmp_path}, such as x/, hold files that match '*.jsonl', too, and are not read: recursive: true"
        " reads them"
    )
    assert "1 folder in" in unread_folders(str(tmp_path), "*.txt", 0)
    assert unread_folders(str(tmp_path), "*.csv", 0) == ""
    assert unread_folders(str(tmp_path / "a.jsonl"), "*", 0) == ""
