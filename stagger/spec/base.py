"""The base class of all parts of a run spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, eq=False)  # Annotations must have a hash, and examples have none.
class Says:
    """An annotation of a field, for messages: what it may hold, in a person's words, an example, and names that it may
    hold among other texts.
    """

    words: str
    example: Any = None
    choices: tuple[str, ...] = ()


class WrongKey(ValueError):
    """A rule that several keys break together. `key` is the path of the one to name, below the model that found it."""

    def __init__(self, key: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.key = key


Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def survives_json(value: Any) -> bool:
    """Whether a value comes back from JSON as it was: run.json and the tasks' settings hold it as JSON."""
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


class Model(BaseModel):
    """An immutable model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    #: How the keys of this model are written, for messages.
    example: ClassVar[dict[str, Any]] = {}
