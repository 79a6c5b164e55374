"""CPU that `removed` and counting cost a pipeline of a cheap filter, compared with the same pipeline without them, with
datatrove's exclusion writer in its place, and with the plain loop over the same documents.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from stagger.pipeline import Document, count
from stagger.pipeline.chain import Step, StepCount, chain
from stagger.pipeline.task_context import TaskContext
from stagger.steps.filter import Filter
from stagger.steps.jsonl import ReadJsonl, WriteJsonl
from stagger.steps.removed import WriteRemoved
from stagger.storage.storage import Storage

#: The largest part of a pipeline's CPU that keeping what a filter removes may add, when it removes nothing.
LIMIT = 1.05

TEXT = "The quick brown fox jumps over the lazy dog, and so on. "


def kept(document: Document, every: int = 0) -> bool:
    """A cheap filter: drops one document of `every`; 0 for none."""
    return not (every and int(document.id) % every == 0)


def counting(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    for document in data:
        count("seen")
        yield document


def passing(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    yield from data


class Pipelines:
    """Pipelines that read the same documents, filter them, and write what is left."""

    def __init__(self, folder: Path, documents: int, characters: int) -> None:
        self.folder = folder
        text = (TEXT * (characters // len(TEXT) + 1))[:characters]
        writer = self._bound(WriteJsonl(str(folder / "input"), compression=None), [])
        source = (Document(f"{number} {text}", str(number)) for number in range(documents))
        for _ in writer.write(source):
            pass
        self._committed(writer._task)

    def _bound(self, step: Any, shards: Any) -> Any:
        step.bind(TaskContext(Storage(), 0, 1, shards, "tag"))
        return step

    def _committed(self, task: TaskContext | None) -> None:
        assert task is not None
        for output in task.finish():
            output.commit(lambda: None, "")
        task.committed()

    def cpu_s(self, *steps: Step, removed: bool = False) -> float:
        """The CPU seconds of reading, these steps and writing; `removed` keeps what the first of them removes."""
        reader = ReadJsonl(str(self.folder / "input"))
        self._bound(reader, list(reader.find_shards(Storage())))
        writer = self._bound(WriteJsonl(str(self.folder / "out")), [])
        removal = self._bound(WriteRemoved(path=str(self.folder / "removed"), name="filter"), []) if removed else None
        counts = [StepCount("read"), StepCount("filter", removal=removal), *(StepCount("more") for _ in steps)]
        started = time.process_time()
        for _ in chain([reader, *steps, writer], counts, 0, 1, lambda: None):
            pass
        for one in (writer, removal):
            if one is not None:
                one.end_shard()
                self._committed(one._task)
        return time.process_time() - started


def datatrove_filter(folder: Path, every: int, excluded: bool) -> Step:
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.writers import JsonlWriter

    writer = JsonlWriter(str(folder / "excluded"), compression="zstd") if excluded else None
    step: Step = LambdaFilter(lambda document: kept(document, every), exclusion_writer=writer)
    return step


@dataclass(frozen=True)
class Way:
    """A way to run the filter of a pipeline; `removed` keeps what it removes."""

    steps: tuple[Step, ...] = ()
    removed: bool = False


def ways(folder: Path) -> dict[str, Way]:
    """What is measured, by name. `none` and `tenth` are the shares of documents that are removed."""
    found = {
        "no filter": Way(),
        "one more step": Way((passing,)),
        "a step that counts each document": Way((counting,)),
    }
    for share, every in (("none", 0), ("tenth", 10)):
        ours: Step = Filter(kept, params={"every": every})
        found |= {f"filter, {share}": Way((ours,)), f"filter, {share}, removed": Way((ours,), removed=True)}
        if measure.version("datatrove"):
            plain, excluding = (datatrove_filter(folder, every, excluded) for excluded in (False, True))
            found |= {
                f"datatrove's filter, {share}": Way((plain,)),
                f"datatrove's filter, {share}, removed": Way((plain,), removed=True),
                f"datatrove's filter, {share}, exclusion writer": Way((excluding,)),
            }
    return found


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=7)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=2000, help="length of a document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        pipelines = Pipelines(Path(work), options.documents, options.characters)
        programs = ways(Path(work))
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(options.repeat):  # In turn, as the load of the machine changes.
            for name, way in programs.items():
                seconds[name].append(pipelines.cpu_s(*way.steps, removed=way.removed))
    results: dict[str, Any] = {
        name: {"cpu_s": measure.summary(found), "us_per_document": round(min(found) / options.documents * 1e6, 2)}
        for name, found in seconds.items()
    }
    ratio = round(min(seconds["filter, none, removed"]) / min(seconds["filter, none"]), 3)
    what = "CPU of a pipeline of a cheap filter that removes nothing, with `removed`, over the same without it"
    return measure.report(options, results, [measure.requirement(what, ratio, LIMIT)])


if __name__ == "__main__":
    sys.exit(main())
