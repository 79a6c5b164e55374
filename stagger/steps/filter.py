"""A filter made of a function of one document."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline import Document, count
from stagger.pipeline.hooks import is_stateless, stateless
from stagger.pipeline.names import resolve
from stagger.pipeline.statistics import DROPPED, NO_REASON
from stagger.steps.removed import REASON


@dataclass(kw_only=True)
class Filter:
    """Keeps the documents for which a function returns True, and drops those for which it returns False, or a text: the
    reason, which is counted.

    Args:
        function: a function `(document, **params)`, or its name, `module:name`.
        params: further arguments of the function, by name.
    """

    function: Any = field(kw_only=False)
    params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        function = self._function()
        name = self.function if isinstance(self.function, str) else getattr(function, "__name__", repr(function))
        if not callable(function) or isinstance(function, type):
            raise StaggerError(f"function: {name} is not a function; give a function of a document, as module:name.")
        try:
            inspect.signature(function).bind(None, **(self.params or {}))
        except TypeError as error:
            raise StaggerError(
                f"function: {name}{inspect.signature(function)} cannot be called as {name}(document"
                f"{''.join(f', {key}=...' for key in self.params or ())}): {error}; give its other arguments in params."
            ) from None
        except ValueError:  # Some functions written in C have no signature.
            pass
        if is_stateless(function):
            stateless(self)

    def _function(self) -> Any:
        """The function; named, it is found when it is needed, as a task loads this object from a pickle."""
        return resolve(self.function) if isinstance(self.function, str) else self.function

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        keeps = partial(self._function(), **self.params) if self.params else self._function()
        for document in data:
            if (answer := keeps(document)) is True or _is_kept(answer, document):
                yield document


def _is_kept(answer: Any, document: Document) -> bool:
    """Whether an answer other than True keeps the document; if not, count the reason. Raises StaggerError for one that
    is neither a truth value nor a reason.
    """
    if isinstance(answer, str) and answer:
        document.metadata[REASON] = answer
        count(f"{DROPPED}{answer}")
        return False
    if type(answer).__name__ not in ("bool", "bool_"):  # numpy has a type of its own.
        raise StaggerError(
            f"The filter returned {answer!r} for the document {document.id!r}; return True to keep a document, False to"
            " drop it, or a text, the reason for which it is dropped."
        )
    if not answer:
        count(f"{DROPPED}{NO_REASON}")
    return bool(answer)
