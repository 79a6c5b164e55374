"""Arrow's files and streams, and data sets of Hugging Face: every row becomes a document, none is lost."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather

from stagger import BadInput, Document, ReadArrow, ReadDataset, StaggerError
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage

ROWS: dict[str, Any] = {"text": [f"text {n}" for n in range(50)], "id": list(map(str, range(50))), "n": list(range(50))}


def read(step: Any, **options: Any) -> list[Document]:
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return list(step(None, 0, 1))


def arrow(path: Path, *, stream: bool, batch: int = 7, **options: Any) -> bytes:
    table = pyarrow.table(ROWS)
    kind = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with kind(path, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path.read_bytes()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"use_legacy_format": True}])
def test_rows_become_documents(tmp_path: Path, stream: bool, options: dict[str, Any]) -> None:
    data = arrow(tmp_path / "a.arrow", stream=stream, **options)
    (tmp_path / "b.arrow.gz").write_bytes(gzip.compress(data))
    documents = read(ReadArrow(str(tmp_path)))
    assert len(documents) == 100
    assert documents[49] == documents[99] == Document("text 49", "49", [], {"n": 49})


def test_feather_and_chosen_columns(tmp_path: Path) -> None:
    feather.write_feather(pyarrow.table(ROWS), tmp_path / "a.feather")
    assert read(ReadArrow(str(tmp_path), metadata_keys=[]))[3] == Document("text 3", "3")
    (tmp_path / "old").mkdir()
    feather.write_feather(pyarrow.table({"text": ["x"]}), tmp_path / "old" / "a.feather", version=1)
    with pytest.raises(BadInput, match="the file is Feather of version 1"):
        read(ReadArrow(str(tmp_path / "old")))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_breaks_off_anywhere_is_noticed(tmp_path: Path, stream: bool, legacy: bool) -> None:
    data = arrow(tmp_path / "a.arrow", stream=stream, use_legacy_format=legacy)
    for length in [*range(1, len(data), 61), *range(len(data) - 20, len(data))]:
        (tmp_path / "a.arrow").write_bytes(data[:length])
        with pytest.raises(BadInput, match=r"a\.arrow, record \d+.*: (the file is (truncated|damaged)|not an Arrow)"):
            read(ReadArrow(str(tmp_path)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    for data, said in (
        (b'{"text": "x"}\n', "not an Arrow file"),
        (b"PK\x03\x04" + bytes(100), "not an Arrow file, but "),
        (arrow(tmp_path / "x", stream=True) * 2, "more follows after the end of the stream"),
    ):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "a.arrow").write_bytes(data)
        with pytest.raises(BadInput, match=said):
            read(ReadArrow(str(tmp_path / "in")))


# ---- Data sets ----


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets")


def test_a_saved_data_set(tmp_path: Path, datasets: Any) -> None:
    one = datasets.Dataset.from_dict(ROWS)
    one.save_to_disk(tmp_path / "one", num_shards=3)
    step = ReadDataset(str(tmp_path / "one"))
    assert [shard.name for shard in step.find_shards(Storage())] == [f"data-0000{n}-of-00003.arrow" for n in range(3)]
    documents = read(step)
    assert [(one.text, one.id, one.metadata["n"]) for one in documents] == list(
        zip(ROWS["text"], ROWS["id"], ROWS["n"], strict=True)
    )
    one.filter(lambda row: row["n"] % 2).save_to_disk(tmp_path / "odd")
    assert [document.id for document in read(ReadDataset(str(tmp_path / "odd")))] == list(map(str, range(1, 50, 2)))


def test_splits(tmp_path: Path, datasets: Any) -> None:
    one = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"train": one, "test": one.select([3])}).save_to_disk(tmp_path / "two")
    folder = str(tmp_path / "two")
    assert [document.id for document in read(ReadDataset(folder, split="test"))] == ["3"]
    with pytest.raises(StaggerError, match="has the splits train, test; give split"):
        read(ReadDataset(folder))
    with pytest.raises(StaggerError, match="has the splits train, test, but none called 'dev'"):
        read(ReadDataset(folder, split="dev"))
    with pytest.raises(StaggerError, match="glob does not go with read_dataset"):
        ReadDataset(folder, glob="*.arrow")
    with pytest.raises(StaggerError, match="save_to_disk has not written it"):
        read(ReadDataset(str(tmp_path)))
    (tmp_path / "two" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(StaggerError, match=r"data-00000-of-00001\.arrow, listed in state\.json, does not exist"):
        read(ReadDataset(folder, split="test"))


def test_the_hub_without_a_network(datasets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)
    with pytest.raises(StaggerError, match=r"The data set 'user/none' cannot be read from the Hub .*save_to_disk"):
        ReadDataset("user/none", split="train").find_shards(Storage())
    with pytest.raises(StaggerError, match="name and revision are those of a data set on the Hub"):
        ReadDataset(str(tmp_path), name="x")


def test_files_of_the_hub_are_shards(datasets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(3):
        pyarrow.parquet.write_table(pyarrow.table(ROWS).slice(number * 10, 10), tmp_path / f"{number}.parquet")
    load = datasets.load_dataset
    files = sorted(map(str, tmp_path.glob("*.parquet")))

    def stand_in(name: str, config: str | None, **options: Any) -> Any:
        assert (name, config, options.pop("revision")) == ("user/data", "en", "abc")
        return load("parquet", data_files=files, **options)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    step = ReadDataset("user/data", split="train", name="en", revision="abc", add_source=True)
    shards = step.find_shards(Storage())
    assert [shard.name for shard in shards] == [f"0000{n}-of-00003" for n in range(3)]
    step.bind(TaskContext(Storage(), 0, 2, shards[::2], "tag"))
    documents = list(step(None, 0, 2))
    assert [one.id for one in documents] == [str(n) for n in (*range(10), *range(20, 30))]
    assert documents[10].metadata == {"n": 20, "shard": "hf://datasets/user/data/00002-of-00003", "position": 0}
