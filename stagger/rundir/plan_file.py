"""The plan of a stage: the steps and shards of every rank, in one immutable file.

    16 bytes              magic, version
    8 bytes               number of ranks
    8 bytes x (ranks + 1) table: the offset of each frame, then the end of the last one (little-endian)
    ...                   one zstd frame per rank, with checksum: a JSON object; `shards` holds three lists: the names,
                          the sizes and the versions of the rank's shards

A task reads 16 bytes of the table and its own frame: two range reads, whatever the number of ranks and shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import orjson
import zstandard

from stagger.errors import StaggerError, counted
from stagger.pipeline import Shard
from stagger.storage.storage import Storage, is_local

if TYPE_CHECKING:
    from stagger.pipeline.shard_table import RankShards

MAGIC = b"stagger plan 1\n\0"
NUMBER = 8  # Bytes of each number in the table.
TABLE = len(MAGIC) + NUMBER
LEVEL = 3

#: Largest frame in bytes: a table entry beyond it is damaged.
MAX_FRAME = 2**31


#: What decoding raises when a plan is damaged. (orjson.JSONDecodeError is a ValueError.)
DAMAGE = (zstandard.ZstdError, KeyError, TypeError, ValueError, MemoryError)


@dataclass(frozen=True)
class RankPlan:
    """The work of one rank: run `steps`, in the form of the spec, over `shards`."""

    stage: str
    fingerprint: str
    rank: int
    world_size: int
    steps: list[dict[str, Any]]
    shards: list[Shard]


def write_plan(
    storage: Storage, path: str, stage: str, fingerprint: str, steps: list[dict[str, Any]], ranks: RankShards
) -> None:
    """Write the plan file. `ranks[r]` holds the shards of rank r."""
    output = storage.output(path, "plan", record=True)
    try:
        for piece in encoded(stage, fingerprint, steps, ranks):
            output.write(piece)
        output.finish()
        output.commit(lambda: None, None)
    except BaseException:
        output.abort()
        raise
    storage.settle([path])


def encoded(stage: str, fingerprint: str, steps: list[dict[str, Any]], ranks: RankShards) -> Iterator[bytes]:
    """The content of the plan file, in pieces."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    head = {"stage": stage, "fingerprint": fingerprint, "world_size": len(ranks), "steps": steps}
    frames = [
        compressor.compress(orjson.dumps({**head, "rank": rank, "shards": list(ranks.pick(rank))}))
        for rank in range(len(ranks))
    ]
    offsets = accumulate(map(len, frames), initial=TABLE + NUMBER * (len(ranks) + 1))
    yield MAGIC + _packed([len(ranks), *offsets])
    yield from frames


def read_rank(storage: Storage, path: str, fingerprint: str, rank: int) -> RankPlan:
    """Read one rank's slice of the plan, with two range reads. Waits for a local plan that is not visible yet.

    Raises StaggerError when the file is missing or damaged, or belongs to another fingerprint.
    """
    try:
        return _read_rank(storage, path, fingerprint, rank)
    except FileNotFoundError:
        if is_local(path):
            from stagger.storage.late_files import appears  # Imported late: hardly any task needs it.

            if appears(path, storage.check):
                return _read_rank(storage, path, fingerprint, rank)
        raise StaggerError(f"The plan {path} is missing; launch the pipeline again to recreate it.") from None


def _read_rank(storage: Storage, path: str, fingerprint: str, rank: int) -> RankPlan:
    entry = TABLE + NUMBER * rank
    try:
        start, end = _unpacked(storage.read_range(path, entry, entry + 2 * NUMBER))
        if not entry < start < end < start + MAX_FRAME:
            raise ValueError(f"rank {rank} is not in it")
        plan = _decode(storage.read_range(path, start, end))
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if plan.rank != rank or plan.fingerprint != fingerprint:
        raise _damaged(path, f"found rank {plan.rank} of {plan.fingerprint} in place of rank {rank} of {fingerprint}")
    return plan


def read_all(storage: Storage, path: str) -> Iterator[RankPlan]:
    """Read every rank's slice, to compare it with a new launch's plan. Raises StaggerError when the file is damaged."""
    data = storage.read(path)
    try:
        (count,) = _unpacked(data[len(MAGIC) : TABLE])
        if TABLE + NUMBER * (count + 1) > len(data):
            raise ValueError(f"it has no room for {counted(count, 'rank')}")
        for start, end in pairwise(_unpacked(data[TABLE : TABLE + NUMBER * (count + 1)])):
            yield _decode(data[start:end])
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _packed(numbers: Iterable[int]) -> bytes:
    return b"".join(number.to_bytes(NUMBER, "little") for number in numbers)


def _unpacked(data: bytes) -> list[int]:
    """The numbers in a part of the table; fewer if it is cut. The module `struct` would cost a start one more file."""
    return [int.from_bytes(data[at : at + NUMBER], "little") for at in range(0, len(data) - NUMBER + 1, NUMBER)]


def _decode(frame: bytes) -> RankPlan:
    """The work in a frame. Raises an error of DAMAGE when it is damaged."""
    if zstandard.frame_content_size(frame) > MAX_FRAME:
        raise ValueError("a frame of impossible size")
    plan = orjson.loads(zstandard.ZstdDecompressor().decompress(frame))
    plan = RankPlan(**{**plan, "shards": list(map(Shard._make, zip(*plan["shards"], strict=True)))})
    if not all(type(shard.name) is str and type(shard.size) is int for shard in plan.shards):
        raise ValueError("a shard without a name or a size")
    if not all(isinstance(step["use"], str) and isinstance(step["params"], dict) for step in plan.steps):
        raise ValueError("a step without a name or parameters")
    return plan


def _damaged(path: str, reason: object) -> StaggerError:
    return StaggerError(f"The plan {path} is damaged ({reason}); remove it and launch the pipeline again.")
