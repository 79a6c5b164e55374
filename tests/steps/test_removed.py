"""`removed` keeps exactly the documents that went into a step and did not come out, however the step works."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger import Document, Filter, LocalExecutor, ReadJsonl, StaggerError, WithRemoved, WriteJsonl
from stagger.pipeline.chain import Step, StepCount, chain
from stagger.pipeline.task_context import TaskContext
from stagger.spec.load import load_file
from stagger.steps.removed import FEWEST, WriteRemoved
from stagger.storage.storage import Storage
from tests.conftest import PipelineFiles, contents
from tests.kit.commits import commit
from tests.kit.runs import completions

COUNT = 1000


def kept(document: Document) -> bool:
    return random.Random(document.id).random() < 0.6


def documents(data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    for number in range(COUNT):
        yield Document(f"text {number}", str(number))


def one_by_one(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    yield from filter(kept, data)


def in_batches(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    while batch := list(itertools.islice(data, 77)):
        yield from [document for document in batch if kept(document)]


def all_at_once(data: Iterable[Document], rank: int, world_size: int) -> list[Document]:
    return [document for document in data if kept(document)]


def shuffled(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    """Holds a hundred documents, and passes on one of them at random."""
    chosen, held = random.Random(1), []
    for document in data:
        held.append(document)
        if len(held) > 100:
            taken = held.pop(chosen.randrange(len(held)))
            if kept(taken):
                yield taken
    yield from filter(kept, reversed(held))


def keeps_the_first(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    """Holds the first document for ever, and passes it on as the last."""
    first = next(iter(data))
    yield from filter(kept, data)
    yield first


class Removal:
    """A step in a chain of its own, and what `removed` makes of it."""

    def __init__(self, folder: Path, step: Step, last: Step | None = None, **options: Any) -> None:
        self.task = TaskContext(Storage(), 0, 1, [], "tag")
        self.writer = WriteRemoved(path=str(folder), compression=None, step=2, name="step 2 (x)", **options)
        self.writer.bind(self.task)
        self.counts = [StepCount("documents"), StepCount("x", removal=self.writer), StepCount("last")]
        self.steps: list[Step] = [documents, step, last or (lambda data, rank, world_size: data)]

    def run(self) -> list[Document]:
        return list(chain(self.steps, self.counts, 0, 1, lambda: None))

    def written(self) -> list[dict[str, Any]]:
        self.writer.end_shard()
        commit(self.task)
        return [json.loads(line) for file in self.task.outputs for line in Path(file.output.path).open()]


@pytest.mark.parametrize("step", [one_by_one, in_batches, all_at_once, shuffled])
def test_what_did_not_come_out_is_written_once(tmp_path: Path, step: Step) -> None:
    removal = Removal(tmp_path, step)
    came_out = [document.id for document in removal.run()]
    written = [document["id"] for document in removal.written()]
    assert sorted(written + came_out, key=int) == [str(number) for number in range(COUNT)]
    assert set(written) == {document.id for document in documents() if not kept(document)}
    if step is one_by_one:
        assert written == sorted(written, key=int)


def test_a_document_that_comes_out_last_is_not_removed(tmp_path: Path) -> None:
    removal = Removal(tmp_path, keeps_the_first)
    assert removal.run()[-1].id == "0"
    assert "0" not in [document["id"] for document in removal.written()]


def test_memory_holds_what_the_step_holds_and_no_more(tmp_path: Path) -> None:
    inside: list[int] = []

    def watching(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        for document in keeps_the_first(data, rank, world_size):
            inside.append(len(removal.writer._inside))
            yield document

    removal = Removal(tmp_path, watching)
    removal.run()
    assert max(inside) <= 2 * FEWEST


def test_a_later_step_that_stops_early_leaves_what_the_step_still_holds(tmp_path: Path) -> None:
    def ten(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        yield from itertools.islice(data, 10)

    removal = Removal(tmp_path, in_batches, ten)
    came_out = {document.id for document in removal.run()}
    written = {document["id"] for document in removal.written()}
    assert len(came_out) == 10
    assert written <= {str(number) for number in range(77)} - {d.id for d in documents() if kept(d)}
    removal = Removal(tmp_path / "b", one_by_one, ten)
    last = int([document.id for document in removal.run()][-1])
    written = {document["id"] for document in removal.written()}
    assert written == {document.id for document in documents() if int(document.id) < last and not kept(document)}


def copies(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    for document in data:
        yield Document(document.text, document.id)


def twice(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    for document in data:
        yield document
        yield document


def nothing(data: Iterable[Document], rank: int, world_size: int) -> None:
    for _ in data:
        pass


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (copies, r"step 2 \(x\) yields a document that did not go into it \('0'\).*change documents in place"),
        (twice, r"step 2 \(x\) yields a document that did not go into it \('0'\), or one twice"),
        (nothing, r"step 2 \(x\) returned None, so none of its documents came out"),
    ],
)
def test_a_step_whose_removed_documents_are_unknown_is_refused(tmp_path: Path, step: Step, sentence: str) -> None:
    with pytest.raises(StaggerError, match=sentence):
        Removal(tmp_path, step).run()
    assert not list(tmp_path.rglob("*.jsonl"))


def test_one_object_that_comes_in_twice_is_refused(tmp_path: Path) -> None:
    removal = Removal(tmp_path, lambda data, rank, world_size: filter(lambda document: False, data))
    document = Document("text", "one")
    removal.steps[0] = lambda data, rank, world_size: iter([document, document])
    with pytest.raises(StaggerError, match="got the document 'one' twice, as one object"):
        removal.run()


def reason(document: Document, least: int = 0) -> bool | str:
    return "too small" if int(document.id) < least else int(document.id) % 3 > 0


@pytest.mark.parametrize("wanted", [True, False])
def test_the_reason_is_in_the_metadata(tmp_path: Path, wanted: bool) -> None:
    removal = Removal(tmp_path, Filter(reason, params={"least": 10}), reason=wanted)
    removal.run()
    assert removal.counts[1].counts == {"dropped_too small": 10, "dropped_no reason given": 330}
    reasons = [document["metadata"].get("filter_reason") for document in removal.written()]
    assert reasons == [*["too small" if wanted else None] * 10, *[None] * 330]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_filter_of_datatrove_removes_what_its_exclusion_writer_holds(tmp_path: Path, batch_size: int) -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters.base_filter")
    writers = pytest.importorskip("datatrove.pipeline.writers")

    class Short(filters.BaseFilter):  # type: ignore[misc,name-defined]
        name = "short"

        def filter(self, doc: Any) -> bool | tuple[bool, str]:
            answer = reason(doc, 10)
            return (False, answer) if isinstance(answer, str) else answer

    removal = Removal(tmp_path / "removed", Short(batch_size=batch_size))
    removal.run()
    writer = writers.JsonlWriter(str(tmp_path / "excluded"), compression=None)
    for _ in Short(exclusion_writer=writer, batch_size=batch_size).run(documents()):
        pass
    excluded = [json.loads(line) for line in (tmp_path / "excluded" / "00000.jsonl").open()]
    assert [{**one, "metadata": one.get("metadata", {})} for one in excluded] == removal.written()


def test_removed_documents_are_outputs_of_the_run(tmp_path: Path, shards: Path) -> None:
    def even(document: Document) -> bool | str:
        return int(document.id.rpartition("-")[2]) % 2 == 0 or "odd"

    def run(fail: bool) -> Any:
        def failing(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
            for document in data:
                if fail and document.id == "doc-502":
                    raise ValueError("not yet")
                yield document

        steps: list[Any] = [
            ReadJsonl(str(shards)),
            WithRemoved(Filter(even), tmp_path / "removed", compression=None),
            failing,
            WriteJsonl(str(tmp_path / "out")),
        ]
        return LocalExecutor(steps, run_dir=tmp_path / "run", tasks=3, workers=1)

    with pytest.raises(StaggerError):
        run(fail=True).run()
    assert not (tmp_path / "removed" / "00001.jsonl").exists()  # The shard with document 502 is rank 1's.
    handle = run(fail=False).run()
    removed = b"".join(contents(tmp_path / "removed").values()).splitlines()
    assert sorted(json.loads(line)["id"] for line in removed) == sorted(f"doc-{n}" for n in range(1, 600, 2))
    state = handle.status()["pipeline"]
    assert (state.records_out, state.dropped) == (300, {"odd": 300})
    outputs = [output for record in completions(tmp_path / "run") for output in record["outputs"]]
    assert sorted(one.get("removed_by", 0) for one in outputs) == [0, 0, 0, 2, 2, 2]
    assert state.output_folders == (str(tmp_path / "out"),)


def removing(pipeline_file: PipelineFiles, **removed: Any) -> Path:
    return pipeline_file(steps=({"filter": {"function": "my_steps:is_even"}, "removed": removed},), tasks=3)


def test_a_launch_refuses_what_removed_documents_would_mix_with(
    pipeline_file: PipelineFiles, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    (tmp_path / "removed").mkdir()
    (tmp_path / "removed" / "00001.jsonl.zst").write_bytes(b"")
    said = cli("launch", removing(pipeline_file, path=str(tmp_path / "removed")), check=2).err
    assert f"1 file in {tmp_path}/removed, such as 00001.jsonl.zst: not written by this run" in said
    same = removing(pipeline_file, path=str(tmp_path / "run-output"))
    assert "would both be written to" in cli("launch", same, check=2).err
    one = removing(pipeline_file, path=str(tmp_path / "new"), filename="all.jsonl")
    assert "filename 'all.jsonl' is the same for all 3 ranks" in cli("launch", one, check=2).err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"removed": "there"}, "a step has a name, this one has only removed"),
        ({"my_steps:is_even": {}, "removed": {"path": "x", "reson": True}}, "did you mean 'reason'"),
        ({"my_steps:is_even": {}, "removed": None}, ""),
        ({"my_steps:is_even": {}, "removed": 3}, "removed"),
    ],
)
def test_mistakes_beside_a_step_are_named(pipeline_file: PipelineFiles, step: Any, sentence: str) -> None:
    file = pipeline_file(steps=(step,))
    if not sentence:
        assert load_file(str(file)).stages[0].pipeline[1].removed is None
        return
    with pytest.raises(StaggerError, match=sentence):
        load_file(str(file))


def test_a_reader_and_a_writer_remove_nothing(pipeline_file: PipelineFiles, cli: Callable[..., Any]) -> None:
    file = pipeline_file()
    content = json.loads(file.read_text())
    for number, what in ((0, "is the first step"), (1, "is a writer")):
        steps = [dict(step) for step in content["pipeline"]]
        steps[number]["removed"] = "x"
        file.write_text(json.dumps({**content, "pipeline": steps}))
        assert what in cli("launch", file, "--dry-run", check=2).err
