"""The base class of all parts of a run spec."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from stagger.spec.descriptions import descriptions


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


@contextlib.contextmanager
def without_plugins() -> Iterator[None]:
    """Let pydantic build models without its plugins: to find them, it reads the metadata of all installed packages.

    The user's own models, which are built elsewhere, keep theirs.
    """
    name = "PYDANTIC_DISABLE_PLUGINS"
    before = os.environ.get(name)
    os.environ[name] = "__all__"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


class Model(BaseModel):
    """An immutable model that rejects unknown keys. pydantic builds it when it first validates a value: a command
    needs few models, and their parts are built with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    #: How the keys of this model are written, for messages.
    example: ClassVar[dict[str, Any]] = {}

    @classmethod
    def model_rebuild(cls, **how: Any) -> bool | None:
        """Build the model."""
        with without_plugins():
            return super().model_rebuild(**how)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        cls.model_rebuild()  # pydantic 2.8 cannot encode a default that is of a model which is not built.
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            if name in properties:
                properties[name]["description"] = text
        return schema
