"""Which engine a model needs on the devices of a job. Decides from bytes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stagger.errors import StaggerError, counted
from stagger.models.memory import with_reserve

EngineName = Literal["auto", "whole", "stream"]

#: Blocks that streaming holds at most: one that is computed, the next one, and bytes of it that are not converted yet.
STREAMED_BLOCKS = 3

#: Those of them that lie on a GPU.
STREAMED_BLOCKS_ON_GPU = 2


@dataclass(frozen=True)
class Place:
    """One device, in bytes. free: what may still be taken. blocks: the blocks that the engine `whole` puts there."""

    free: int
    blocks: int


@dataclass(frozen=True)
class Needs:
    """What a model needs, in bytes.

    model: how messages call it. blocks: their number. largest: the largest block. ends: what is outside the blocks.
    activations: what the largest microbatch takes beside the weights. on_gpus: whether the places are GPUs.
    """

    model: str
    blocks: int
    largest: int
    ends: int
    activations: int
    places: Sequence[Place]
    on_gpus: bool

    @property
    def free(self) -> int:
        """Bytes that are free on all devices together."""
        return sum(place.free for place in self.places)

    @property
    def all_blocks(self) -> int:
        return sum(place.blocks for place in self.places)

    @property
    def beside(self) -> int:
        return self.ends + self.activations

    @property
    def streamed(self) -> int:
        """What streaming takes on a device, beside its window."""
        return (STREAMED_BLOCKS_ON_GPU if self.on_gpus else STREAMED_BLOCKS) * self.largest + self.beside

    @property
    def where(self) -> str:
        if not self.on_gpus:
            return f"this process has {size(self.free)} of memory left"
        if len(self.places) == 1:
            return f"the device has {size(self.free)} free"
        return f"the {len(self.places)} devices have {size(self.free)} free"


def choose(needs: Needs, wanted: EngineName) -> tuple[EngineName, str]:
    """The engine that is wanted, or fits, and why, in one line.

    `whole` fits where a device holds its blocks, the ends and the activations, and a tenth of that remains free.
    Raises StaggerError if neither fits.
    """
    fits = all(with_reserve(place.blocks + needs.beside) <= place.free for place in needs.places)
    takes = f"the model's {counted(needs.blocks, 'block', 'takes')} {size(needs.all_blocks)}, {needs.where}"
    if wanted == "whole":
        if any(place.blocks + needs.ends > place.free for place in needs.places):
            raise StaggerError(f"{needs.model} does not fit as a whole: {takes}. Use engine: stream, or more memory.")
        return "whole", f"engine whole, as requested: {takes}"
    if wanted == "auto" and fits:
        return "whole", f"engine whole: {takes}"
    if any(with_reserve(needs.streamed) > place.free for place in needs.places):
        raise too_large(needs)
    asked = ", as requested" if wanted == "stream" else ""
    return "stream", f"engine stream{asked}: {takes}"


def too_large(needs: Needs) -> StaggerError:
    """The error for a model whose blocks do not even fit one after another."""
    copies = STREAMED_BLOCKS_ON_GPU if needs.on_gpus else STREAMED_BLOCKS
    return StaggerError(
        f"{needs.model} does not fit, not even block by block: {counted(copies, 'block')} of {size(needs.largest)}, the"
        f" embedding and the head ({size(needs.ends)}), a microbatch ({size(needs.activations)}) and a tenth more are"
        f" {size(with_reserve(needs.streamed))}; {needs.where}. Request"
        f" {'a GPU with more memory' if needs.on_gpus else 'more memory (mem_per_cpu_gb)'}, or use smaller microbatches"
        " (tokens), or dtype: bfloat16."
    )


def size(number: int) -> str:
    """Bytes, in a sentence.

    >>> size(137_400_000_000), size(1_710_000_000), size(290_000_000), size(12_300)
    ('137 GB', '1.7 GB', '290 MB', '0.01 MB')
    """
    if number >= 10**8 * 9.995:
        return f"{number / 1e9:.3g} GB" if number >= 1e10 else f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.3g} MB" if number >= 10**6 else f"{number / 1e6:.2f} MB"
