"""Which tensors of a checkpoint make which parameters of a model, block by block."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stagger.errors import StaggerError, counted
from stagger.models.transformers_loading import Conversion

#: Names that a message shows.
SHOWN = 3


class TensorPlan:
    """The tensors and parameters of each block, and of what is outside the blocks: that is "block" None.

    Raises StaggerError when they do not match: with the names of tensors that are missing, of those that the model has
    no place for, and of one with another shape.
    """

    def __init__(self, model: Any, prefix: str, conversion: Conversion, folder: str) -> None:
        self._model_name = type(model).__name__
        self._folder = folder
        self._prefix = prefix
        self._conversion = conversion
        #: The bytes of each parameter and persistent buffer of a block, by name.
        self.parts: dict[int | None, dict[str, int]] = defaultdict(dict)
        for name, part in model.state_dict().items():
            self.parts[self.block_of(name)][name] = part.numel() * part.element_size()
        #: The tensors for each block.
        self.names: dict[int | None, list[str]] = defaultdict(list)
        for name, target in conversion.target.items():
            if target is not None:
                self.names[self.block_of(target)].append(name)
        self._check(model)

    def block_of(self, parameter: str) -> int | None:
        """The block that a parameter belongs to; None for one outside the blocks."""
        start, _, rest = parameter.partition(f"{self._prefix}.")
        number = rest.partition(".")[0]
        return int(number) if not start and number.isdigit() else None

    def _check(self, model: Any) -> None:
        tied: dict[str, str] = model.all_tied_weights_keys
        shared = [name for name in (*tied, *tied.values()) if self.block_of(name) is not None]
        if shared:
            raise StaggerError(f"{self._model_name} cannot be cut: its blocks share parameters: {some(shared)}.")
        reasons = []
        if missing := sorted(self._absent_siblings()) or self._without_tensors(tied):
            reasons.append(f"{counted(len(missing), 'tensor', 'is')} missing: {some(missing)}")
        nowhere = [name for name, target in self.target.items() if target is None]
        if extra := [name for name in nowhere if not self._conversion.ignored(name)]:
            reasons.append(f"{self._model_name} has no place for {counted(len(extra), 'tensor')}: {some(extra)}")
        if misfits := self._conversion.misfits():
            more = f", as {counted(len(misfits) - 1, 'more tensor', 'has')} another one" if len(misfits) > 1 else ""
            reasons.append(f"{misfits[0]}{more}")
        if reasons:
            raise StaggerError(
                f"{self._folder}: {'; '.join(reasons)}. Copy the model again; if it is complete, its config.json is"
                " that of another model."
            )

    def _without_tensors(self, tied: Mapping[str, str]) -> list[str]:
        """The parameters that no tensors make. Of those that are tied together, one must have a tensor."""
        made = self._conversion.made
        together: dict[str, set[str]] = defaultdict(set)
        for name, source in tied.items():
            together[source] |= {name, source}
        groups = {name: group for group in together.values() for name in group}
        names = [name for parts in self.parts.values() for name in parts]
        return [name for name in names if not groups.get(name, {name}) & made]

    def _absent_siblings(self) -> Iterable[str]:
        """The tensors that a block lacks and another block with the same parameters has."""
        kinds: dict[frozenset[str], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for block, parts in self.parts.items():
            if block is not None:
                kind = frozenset(without_number(name, block) for name in parts)
                kinds[kind][block] = {without_number(name, block) for name in self.names[block]}
        for blocks in kinds.values():
            every = set().union(*blocks.values())
            for block, names in blocks.items():
                yield from (name.replace("*", str(block), 1) for name in every - names)

    @property
    def target(self) -> Mapping[str, str | None]:
        """The parameter that each tensor becomes, or becomes a part of."""
        return self._conversion.target

    def converted(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that `tensors` make. Raises StaggerError when they do not fit."""
        try:
            return self._conversion.convert(tensors)
        except StaggerError as error:
            raise StaggerError(f"{self._folder}: {error}") from error


def some(names: Collection[str]) -> str:
    """The first of the names."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return f"{shown}, ..." if len(names) > SHOWN else shown


def without_number(name: str, block: int) -> str:
    """The name of a tensor or parameter, with `*` in place of the number of its block.

    >>> without_number("model.layers.1.mlp.experts.1.w1.weight", 1)
    'model.layers.*.mlp.experts.1.w1.weight'
    """
    return re.sub(rf"(?<=\.){block}(?=\.)", "*", name, count=1)
