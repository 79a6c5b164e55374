"""How documents pass a model: what both model steps have in common. Imports no torch: a launch need not have it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stagger.errors import StaggerError, missing_extra
from stagger.models.config_facts import PLACES, number_of, own_dtype
from stagger.models.dtypes import ComputingDtype

EngineName = Literal["auto", "whole", "stream", "swarm"]
Dtype = Literal["auto", ComputingDtype]
OnLong = Literal["window", "truncate", "fail"]
OnNonfinite = Literal["fail", "count"]

#: What a model step imports at its first document. They come with the extra `models`.
PACKAGES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Settings:
    """The parameters of a model step that do not depend on what it computes (see `ModelStep`), checked."""

    model: str
    engine: EngineName
    dtype: Dtype
    tokens: int
    max_length: int | None
    on_long: OnLong
    stride: int | None
    tokenizer: str
    buffer_tokens: int
    on_nonfinite: OnNonfinite

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise StaggerError(f"tokens is {self.tokens}; give the places of a microbatch, such as 4096.")
        if self.max_length is not None and self.max_length < 2:
            raise StaggerError(f"max_length is {self.max_length}; give at least 2 tokens.")
        if self.stride is not None and self.on_long != "window":
            raise StaggerError(f"stride belongs to on_long: window, and on_long is {self.on_long}; remove one of them.")
        if self.stride is not None and self.stride < 1:
            raise StaggerError(f"stride is {self.stride}; give at least 1 token.")
        if self.stride is not None and self.max_length is not None:
            self._check_stride(self.max_length)
        if self.buffer_tokens < 0:
            raise StaggerError(f"buffer_tokens is {self.buffer_tokens}; give a number of tokens, 0 for no wait.")

    def _check_stride(self, longest: int) -> None:
        if self.stride is not None and self.stride >= longest:
            raise StaggerError(
                f"stride is {self.stride:,}, and max_length {longest:,}: the first token of a window would have none"
                " before it; give a smaller stride."
            )

    def longest(self, config: Mapping[str, Any]) -> int:
        """The most tokens that pass the model together: `max_length`, or else the model's number of positions.

        Raises StaggerError when they do not suit the model.
        """
        places = number_of(config, PLACES)
        if self.max_length is None and places is None:
            raise StaggerError("max_length: the config.json of this model has no number of positions: give max_length.")
        if self.max_length is not None and places is not None and self.max_length > places:
            raise StaggerError(
                f"max_length is {self.max_length:,}, but the model has {places:,} positions: give at most that."
            )
        longest = self.max_length or places or 0
        self._check_stride(longest)
        return longest

    def step_of_windows(self, longest: int) -> int:
        """Tokens between the starts of two windows."""
        return self.stride or max(1, longest // 2)

    def dtype_name(self, config: Mapping[str, Any]) -> str:
        """The dtype that the model computes with."""
        return own_dtype(config) if self.dtype == "auto" else self.dtype


def has_models() -> bool:
    """Whether what a model step imports is installed here."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def need_models(*more: str) -> None:
    """Raise StaggerError when a package is not installed that a model step imports, or one of `more`."""
    for name in (*PACKAGES, *more):
        if importlib.util.find_spec(name) is None:
            raise missing_extra("models", name, ModuleNotFoundError(f"No module named '{name}'"))
