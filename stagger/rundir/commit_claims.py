"""Who may commit a rank: commits/<rank>.<turn>.json, one for each attempt that began to commit, created exclusively.

The attempt of the last turn has the right to commit. What it does with it: stagger/task/commit.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Set
from typing import TYPE_CHECKING, cast

from stagger.ranks import pad
from stagger.rundir.stage_folder import StageFolder, check_record, decode
from stagger.storage.storage import join

if TYPE_CHECKING:
    from stagger.rundir.records import CommitClaim


def claim_path(folder: StageFolder, rank: int, turn: int) -> str:
    """The path of a rank's claim number `turn`, from 1."""
    return join(folder.path, "commits", f"{pad(rank)}.{turn}.json")


def decode_claim(data: bytes, path: str) -> CommitClaim:
    """Raises StaggerError naming `path` when the claim is damaged."""
    from stagger.rundir.records import CommitClaim  # Imported late: most tasks read no claim.

    claim = decode(data, path)
    check_record(claim, CommitClaim, path)
    return cast("CommitClaim", claim)


def turns(folder: StageFolder, ranks: Container[int]) -> list[tuple[int, int]]:
    """(rank, turn) of every claim of `ranks`. Costs one listing."""
    found: list[tuple[int, int]] = []
    for name in folder.storage.named(join(folder.path, "commits"), ""):
        numbers = name.removesuffix(".json").split(".")
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers) and int(numbers[0]) in ranks:
            found.append((int(numbers[0]), int(numbers[1])))
    return found


def last_turns(folder: StageFolder, ranks: Container[int]) -> dict[int, int]:
    """Rank -> the turn of its last claim; ranks without a claim are missing. Costs one listing."""
    last: dict[int, int] = {}
    for rank, turn in turns(folder, ranks):
        last[rank] = max(turn, last.get(rank, 0))
    return last


def claims_of(folder: StageFolder, ranks: Container[int], done: Set[int]) -> dict[int, list[CommitClaim]]:
    """The claims of `ranks`, oldest first, but of those that are `done` only if there are several.

    Claims from before the outputs of a rank were cleared do not count. Costs one listing and a read of each claim.
    """
    found = turns(folder, ranks)
    several = Counter(rank for rank, _ in found)
    found = sorted((rank, turn) for rank, turn in found if rank not in done or several[rank] > 1)
    paths = [claim_path(folder, rank, turn) for rank, turn in found]
    claims: dict[int, list[CommitClaim]] = {}
    for (rank, _), path, data in zip(found, paths, folder.storage.read_many(paths), strict=True):
        claim = None if data is None else decode_claim(data, path)
        if claim is not None and claim.get("cleared"):
            claims.pop(rank, None)
        elif claim is not None:
            claims.setdefault(rank, []).append(claim)
    return claims
