"""Tests of what a reader takes for input: files that other programs left beside the data are named, not read."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagger import ReadJsonl, StaggerError
from stagger.pipeline import Shard
from stagger.steps.listing import MARKER, input_files, matcher, names_in, unread_folders, why_not
from stagger.storage import Files
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


PARTS = st.text("ab.*?[]!\n", max_size=6)


@given(PARTS, st.lists(PARTS, min_size=1, max_size=3).map("/".join))
@example("*.gz", "a/b.gz")
@example("*.gz", "a.gz/b")
@example("*", "a/")
@example("**", "a/")
def test_a_glob_without_a_slash_is_matched_with_the_last_part_of_a_name(glob: str, name: str) -> None:
    wanted = matcher(glob)
    assert (wanted is None or bool(wanted(name))) == fnmatch.fnmatchcase(name.rpartition("/")[2], glob)


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


class Listed(Storage):
    """A storage that lists these files, a few at a time."""

    def __init__(self, files: list[Shard], at_once: int) -> None:
        super().__init__()
        self.files = files
        self.at_once = at_once

    def listed(self, folder: str, *, recursive: bool) -> Iterator[Files]:
        for start in range(0, len(self.files), self.at_once):
            yield Files.of(sorted(self.files[start : start + self.at_once]))


parts = st.sampled_from(["a", "b.gz", "_a", "_y=1", ".a", "..", "a.crc", "a_$folder$", "a\nb", "\0", "\U0001f600", ""])
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
files = st.lists(
    st.builds(Shard, paths, st.integers(0, 2), st.just('"e"')), max_size=12, unique_by=lambda file: file.name
)


@given(files, st.integers(1, 5), st.sampled_from(["*", "*.gz", "_*", "a*", "*.crc"]))
def test_columns_are_chosen_as_files_one_by_one_would_be(files: list[Shard], at_once: int, glob: str) -> None:
    table, left_out = input_files(Listed(files, at_once), "s3://data/in", glob, recursive=True)
    fitting = [file for file in files if fnmatch.fnmatchcase(file.name.rpartition("/")[2], glob)]
    reasons = {file: why_not(file.name, file.size, names_in(glob)) for file in fitting}
    below = {file for file in fitting if any(one.name.startswith(f"{file.name}/") for one in files)}
    reasons |= {file: MARKER for file in below if not file.size and not reasons[file]}
    assert list(table) == sorted(file for file, reason in reasons.items() if not reason)
    assert left_out.counts.total() == sum(map(bool, reasons.values()))
