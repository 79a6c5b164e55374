"""Kinds of GPUs: memory and speed. Estimates for a plan; measured speeds go before them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stagger.errors import StaggerError
from stagger.spec.nearest import nearest

#: Share of the peak that a forward pass reaches where no measurement is known. The published ones lie at 0.42 to 0.80.
REACHED = 0.45


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU.

    memory_gb: the sizes in which it is sold, the smallest first. peak_tflops: dense matrix products in 16 bits.
    reached: the share of the peak that long prompts reach in a published measurement; None if none is known.
    bfloat16: whether its matrix units take bfloat16.
    """

    memory_gb: tuple[int, ...]
    peak_tflops: float
    reached: float | None = None
    bfloat16: bool = True

    @property
    def tflops(self) -> float:
        """What is expected of a forward pass."""
        return self.peak_tflops * (self.reached or REACHED)


#: Memory and peaks are those of the vendors' data sheets (without sparsity; the largest form, SXM where there is
#: one). `reached`: tokens per second and layer of Llama 2 70B with long prompts, as profiled for Helix (Mei et al.,
#: arXiv 2406.01566): A100 146,000, V100 52,000, L4 30,000, T4 16,000; one token and layer are 1.71 GFLOP.
KINDS: Mapping[str, GpuKind] = {
    "T4": GpuKind((16,), 65, 0.42, bfloat16=False),
    "V100": GpuKind((16, 32), 125, 0.71, bfloat16=False),
    "A10": GpuKind((24,), 125),
    "A10G": GpuKind((24,), 70),
    "L4": GpuKind((24,), 121, 0.42),
    "RTX3090": GpuKind((24,), 71),
    "RTX4090": GpuKind((24,), 165),
    "A40": GpuKind((48,), 150),
    "RTXA6000": GpuKind((48,), 155),
    "L40S": GpuKind((48,), 362),
    "A100": GpuKind((40, 80), 312, 0.80),
    "H100": GpuKind((80, 94), 989),
    "H200": GpuKind((141,), 989),
    "B200": GpuKind((180,), 2250),
    "MI250X": GpuKind((128,), 383),
    "MI300X": GpuKind((192,), 1307),
}

#: `A100:80GB x 8`, `A100 x 8`, `8 x A100:80GB`, `A100:80`, `A100-80GB`.
PART = re.compile(
    r"(?:(?P<before>\d+)\s*[x*]\s*)?(?P<name>[A-Za-z]\w*?)"
    r"(?:[:\-_ ](?P<memory>\d+)\s*(?:GI?B?)?)?(?:\s*[x*]\s*(?P<after>\d+))?",
    re.IGNORECASE,
)

#: How --gpus is written.
FORM = "'A100:80GB x 8, T4 x 24'"


@dataclass(frozen=True)
class Gpus:
    """`count` equal GPUs with `memory_gb` GB each. `known`: None if the table has no such kind."""

    name: str
    memory_gb: int
    count: int
    known: GpuKind | None

    @property
    def label(self) -> str:
        return f"{self.name} {self.memory_gb} GB"


def parse_gpus(text: str) -> list[Gpus]:
    """The GPUs of --gpus, the same kinds together. Raises StaggerError for what is no GPU, or is missing."""
    found: dict[tuple[str, int], Gpus] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        gpus = _parsed(part)
        key = gpus.name, gpus.memory_gb
        before = found[key].count if key in found else 0
        found[key] = Gpus(gpus.name, gpus.memory_gb, before + gpus.count, gpus.known)
    if not found:
        raise StaggerError(f"--gpus names no GPU; write for example --gpus {FORM}.")
    return list(found.values())


def _parsed(part: str) -> Gpus:
    match = PART.fullmatch(part)
    if match is None or (match["before"] and match["after"]):
        raise StaggerError(f"--gpus: {part!r} is not understood; write for example --gpus {FORM}.")
    count = int(match["before"] or match["after"] or 1)
    name, known = kind_of(match["name"])
    memory = int(match["memory"]) if match["memory"] else None
    if count < 1 or memory == 0:
        raise StaggerError(f"--gpus: {part!r} must have at least one GPU, with memory.")
    if memory is None and (known is None or len(known.memory_gb) > 1):
        sizes = f" ({' or '.join(f'{name}:{size}GB' for size in known.memory_gb)})" if known else f" ({name}:80GB)"
        what = "is sold with several sizes of memory" if known else f"is none of {', '.join(KINDS)}"
        raise StaggerError(f"--gpus: {name} {what}; write its memory too{sizes}.")
    return Gpus(name, memory or (known.memory_gb[0] if known else 0), count, known)


def kind_of(name: str) -> tuple[str, GpuKind | None]:
    """The table's name and entry for a GPU, also for names of Slurm's such as `nvidia_a100_80gb`; None if unknown.

    >>> kind_of("a100")[0], kind_of("nvidia_l4")[0], kind_of("tesla_t4")[0], kind_of("TPU")
    ('A100', 'L4', 'T4', ('TPU', None))
    """
    words = re.split(r"[^A-Za-z0-9]+", name.upper())
    for word in words:
        if word in KINDS:
            return word, KINDS[word]
    joined = "".join(words)
    return next(((kind, KINDS[kind]) for kind in KINDS if kind == joined), (name, None))


def speeds(text: str, gpus: list[Gpus]) -> dict[str, float]:
    """--tokens-per-s: `120000` for all GPUs, or `A100=146000,T4=16000`. Name of the kind -> tokens/s of one block.

    Raises StaggerError for what is no number, or names a GPU that --gpus does not have.
    """
    names = [one.name for one in gpus]
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        left, equals, right = part.partition("=")
        name = kind_of(left.strip())[0] if equals else ""
        if name and name not in names:
            raise StaggerError(f"--tokens-per-s: there is no {left.strip()} among the GPUs; {nearest(name, names)}")
        try:
            speed = float((right if equals else left).replace("_", ""))
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            raise StaggerError(
                f"--tokens-per-s: {part!r} is no number of tokens per second; write 120000, or A100=146000,T4=16000."
            )
        found |= dict.fromkeys([name] if name else names, speed)
    return found
