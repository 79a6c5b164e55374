"""Keeps the documents that a step removes: what went in and did not come out, as the same objects.

A document is removed for certain once nobody holds it but this module: the step cannot pass it on any more, however
far it pulls ahead. So a document is written soon after it was dropped, and the memory needed is that of the step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from stagger.errors import StaggerError
from stagger.pipeline import Document
from stagger.pipeline.chain import Removal, Step
from stagger.pipeline.task_context import OutputFile
from stagger.steps.jsonl import WriteJsonl
from stagger.storage.storage import expand_variables

#: The key of the metadata that holds the reason for which a document was removed, as in datatrove.
REASON = "filter_reason"

#: The number of documents on their way from which on all of them are looked at, not only the oldest.
FEWEST = 64


@dataclass(kw_only=True)
class WriteRemoved(WriteJsonl, Removal):
    """Calls a step, and writes the documents that it removes.

    Args:
        reason: whether the metadata of a document holds the reason, if the step gives one.
        step: the number of the step in its pipeline, from 1 on.
        name: the step in messages.
    """

    reason: bool = True
    step: int = 0
    name: str = ""
    other_holders: int = field(default=0, init=False, repr=False)
    _inside: dict[int, Document] = field(default_factory=dict, init=False, repr=False)
    _removed: list[Document] = field(default_factory=list, init=False, repr=False)
    _most: int = field(default=FEWEST, init=False, repr=False)
    _unheld: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        probe: dict[int, Any] = {0: object()}
        self._unheld = sys.getrefcount(probe[0])

    def around(self, step: Step, data: Any, rank: int, world_size: int) -> Iterable[Any]:
        """What the step yields, called with these arguments."""
        if self.reason:
            from stagger.datatrove.reasons import give_reasons

            give_reasons(step)
        found = step(self._entering(data), rank, world_size)
        if found is None:
            raise StaggerError(
                f"{self.name} returned None, so none of its documents came out: leave `removed` out, or let the step"
                " yield the documents that it keeps."
            )
        return self._leaving(found)

    def _entering(self, data: Iterable[Document]) -> Iterator[Document]:
        inside = self._inside
        for document in data:
            if inside:
                if id(document) in inside:
                    raise StaggerError(
                        f"{self.name} got the document {document.id!r} twice, as one object, so it is unknown whether"
                        " it was removed: let the step before it yield each document once, or leave `removed` out."
                    )
                self._settle()
            inside[id(document)] = document
            yield document

    def _leaving(self, found: Iterable[Any]) -> Iterator[Any]:
        inside = self._inside
        try:
            for document in found:
                if inside.pop(id(document), None) is None:
                    raise self._unknown(document)
                yield document
        except GeneratorExit:  # A later step stopped early. What this one still holds is not removed.
            self._settle_all()
            inside.clear()
            raise
        self._removed += inside.values()
        inside.clear()
        self._write_next()

    def _unknown(self, document: Any) -> StaggerError:
        return StaggerError(
            f"{self.name} yields a document that did not go into it ({getattr(document, 'id', document)!r}), or one"
            " twice, so it is unknown which documents it removes. `removed` needs a step that passes on the same"
            " objects: let it change documents in place, or leave `removed` out."
        )

    def _settle(self) -> None:
        """Write the documents that were removed for certain: the oldest ones, and from time to time all of them."""
        inside, unheld = self._inside, self._unheld + self.other_holders
        while inside:
            key = next(iter(inside))
            if sys.getrefcount(inside[key]) > unheld:
                break
            self._removed.append(inside.pop(key))
        if len(inside) >= self._most:
            self._settle_all()
            self._most = max(FEWEST, 2 * len(inside))
        self._write_next()

    def _settle_all(self) -> None:
        inside, unheld = self._inside, self._unheld + self.other_holders
        for key in [key for key in inside if sys.getrefcount(inside[key]) <= unheld]:
            self._removed.append(inside.pop(key))

    def _write_next(self) -> None:
        """Write the documents that were removed since the last call."""
        if not self._removed:
            return
        for document in () if self.reason else self._removed:
            document.metadata.pop(REASON, None)
        for _ in self.write(self._removed):
            pass
        self._removed.clear()

    def end_shard(self) -> None:
        """Write what a step removed before a later step stopped it, and finish the output if it belongs to a shard."""
        self._write_next()
        super().end_shard()

    def new_output(self, path: str) -> OutputFile:
        file = super().new_output(path)
        file.removed_by, file.aside = self.step, True
        return file


def removal_writers(steps: Sequence[dict[str, Any]], by_shard: bool) -> list[WriteRemoved | None]:
    """For each step of a plan, what writes the documents that it removes, if that is wanted.

    Without a `filename`, there is a file for each shard with `by_shard`, else for each rank.
    """
    filename = "{stem}.jsonl" if by_shard else "{rank}.jsonl"
    found: list[WriteRemoved | None] = []
    for number, step in enumerate(steps, 1):
        options = cast("dict[str, Any]", expand_variables(step.get("removed") or {}, (step["use"], "removed")))
        name = f"step {number} ({step['use']})"
        given = {**options, "filename": options.get("filename") or filename}
        try:
            found.append(WriteRemoved(**given, step=number, name=name) if options else None)
        except StaggerError as error:
            raise StaggerError(f"{name}: removed: {error}") from None
    return found
