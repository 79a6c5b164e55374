"""Reading data sets of Hugging Face: folders of `save_to_disk`, and data sets on the Hub. Needs the extra `parquet`."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from stagger.errors import BadInput, BadRecord, StaggerError, counted, missing_extra
from stagger.pipeline import Document, Shard
from stagger.pipeline.task_context import TaskContext
from stagger.steps.arrow import ReadArrow
from stagger.steps.reader import OpenShard
from stagger.storage.storage import Storage, join

#: The name of a data set on the Hub: `user/name`, or a name alone.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

#: Files of `save_to_disk`: of each split, and of a folder of several.
STATE, SPLITS = "state.json", "dataset_dict.json"

#: Rows that are made documents at once.
ROWS = 1000


@dataclass(kw_only=True)
class ReadDataset(ReadArrow):
    """Reads a data set of Hugging Face: a folder that `save_to_disk` wrote, on any storage, or `user/name` on the Hub.

    The files of a folder are its shards. A data set on the Hub is streamed, and needs the package `datasets` and a
    network, at launch and in the tasks; its files are its shards, too.

    Args:
        split: the split to read, such as train; needed if there are several.
        name: the configuration of a data set on the Hub.
        revision: the revision of a data set on the Hub: a branch, a tag or a commit. Only a commit is always the same.
    """

    split: str | None = None
    name: str | None = None
    revision: str | None = None
    _hub: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        given = os.fspath(self.path)
        if HUB_NAME.fullmatch(given) and not os.path.exists(given):
            self._hub = given
        super().__post_init__()
        for name, default in (("glob", "*"), ("recursive", False), ("paths_file", None), ("compression", "auto")):
            if getattr(self, name) != default:
                raise StaggerError(f"{name} does not go with read_dataset: a data set names its files; leave it out.")
        if self._hub:
            self.path = f"hf://datasets/{given}"
        elif self.name is not None or self.revision is not None:
            raise StaggerError("name and revision are those of a data set on the Hub, and path is a folder.")

    def _found_shards(self, storage: Storage) -> list[Shard]:
        if self._hub:
            return self._hub_shards()
        folder = self._split_folder(storage)
        state = self._json(storage, join(self.path, f"{folder}{STATE}"))
        if state is None:
            raise StaggerError(
                f"{self.path} has no {STATE}, so save_to_disk has not written it; use read_arrow, read_parquet or"
                " read_jsonl for other files, or correct path."
            )
        if state.get("_indices_data_files"):
            raise StaggerError(
                f"{self.path} selects rows by indices; load it, call flatten_indices(), and save it again."
            )
        names = [f"{folder}{one['filename']}" for one in state.get("_data_files", [])]
        entries = storage.entries([join(self.path, name) for name in names])
        shards = []
        for name, entry in zip(names, entries, strict=True):
            if entry is None:
                raise StaggerError(f"{join(self.path, name)}, listed in {STATE}, does not exist; copy it again.")
            shards.append(Shard(name, entry.size, entry.version))
        if not shards:
            raise StaggerError(f"{self.path} lists no files in {STATE}.")
        return shards

    def _split_folder(self, storage: Storage) -> str:
        """The folder of the split below `path`, with a slash; empty if the folder is itself a split."""
        several = self._json(storage, join(self.path, SPLITS))
        if several is None:
            state = self._json(storage, join(self.path, STATE)) or {}
            if self.split is not None and state.get("_split") not in (None, self.split):
                raise StaggerError(f"{self.path} is the split {state['_split']!r}, not {self.split!r}; correct split.")
            return ""
        splits = several.get("splits", [])
        if self.split is None and len(splits) == 1:
            return f"{splits[0]}/"
        if self.split not in splits:
            raise StaggerError(
                f"{self.path} has the splits {', '.join(splits)}"
                f"{'; give split' if self.split is None else f', but none called {self.split!r}'}."
            )
        return f"{self.split}/"

    def _json(self, storage: Storage, path: str) -> dict[str, Any] | None:
        try:
            found = orjson.loads(storage.read(path))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise StaggerError(f"{path} is not JSON ({error}); copy the data set again.") from error
        if not isinstance(found, dict):
            raise StaggerError(f"{path} holds no object; copy the data set again.")
        return found

    # ---- On the Hub ----

    def _hub_shards(self) -> list[Shard]:
        streamed = self._streamed()
        count = max(1, int(streamed.num_shards))
        splits = getattr(streamed.info, "splits", None) or {}
        size = getattr(splits.get(str(streamed.split)), "num_bytes", 0) or 0
        # An object without bytes would count as damaged.
        return [Shard(f"{number:05d}-of-{count:05d}", max(1, size // count)) for number in range(count)]

    def _streamed(self) -> Any:
        """The data set on the Hub. Raises StaggerError when it cannot be reached, or has several splits."""
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise missing_extra("hub", "datasets", error) from error
        try:
            found = datasets.load_dataset(
                self._hub, self.name, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:  # Of requests, of the Hub's client, or of a data set's own code.
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise StaggerError(
                f"The data set {self._hub!r} cannot be read from the Hub ({reason}), and there is no such folder here."
                f" Without a network, save it elsewhere with datasets.load_dataset({self._hub!r}).save_to_disk(FOLDER),"
                " and give that folder as path."
            ) from error
        if not hasattr(found, "num_shards"):
            splits = list(found)
            if len(splits) != 1:
                raise StaggerError(f"{self._hub} has the splits {', '.join(map(str, splits))}; give split.")
            return found[splits[0]]
        return found

    def _documents(self, task: TaskContext, shard: Shard) -> Generator[Document, None, None]:
        if not self._hub:
            yield from super()._documents(task, shard)
            return
        task.circumstances.stop.check()
        source = OpenShard(shard.name, f"{self.path}/{shard.name}", None, iter(()), planned=shard)
        try:
            documents = self._rows(source)
            if self.leaves_out_empty or self.default_metadata or self.add_source:
                yield from self._finished(documents, source, task)
            else:
                yield from documents
        except BadRecord as error:
            raise BadInput(f"{source.path}, {source.place()}: {error}") from error

    def _rows(self, shard: OpenShard) -> Iterator[Document]:
        number, _, count = shard.name.partition("-of-")
        streamed = self._streamed()
        if max(1, int(streamed.num_shards)) != int(count):
            raise BadInput(
                f"{self._hub} has {counted(streamed.num_shards, 'file')} now, {int(count):,} when the plan was made;"
                " give revision"
            )
        rows = streamed.shard(num_shards=int(count), index=int(number)).with_format("arrow")
        columns = None
        for table in rows.iter(batch_size=ROWS):
            columns = columns or self.columns(table.schema)
            for batch in table.select([column.name for column in columns]).combine_chunks().to_batches():
                yield from self.documents_of(shard, columns, batch)
        self.tell_left_out(shard, columns or [])
