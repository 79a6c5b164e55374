"""How ranks become arrays: their sizes, throttles, names and records."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from stagger.errors import StaggerError
from stagger.executor.base import ArrayPlan
from stagger.executor.job_script import WARNING_S
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import ArrayRecord
from stagger.spec.models import StageSpec


def block_scripts(stage: StageSpec) -> dict[str, Any]:
    """What is different about the scripts of block servers: they need time to hand over, beside the drain."""
    if stage.blocks is None:
        return {}
    return {"template": "blocks.sbatch.j2", "warning_s": max(WARNING_S, math.ceil(stage.blocks.drain) + 60)}


def array_record(array: ArrayPlan) -> ArrayRecord:
    """The record of an array; its job id is known once it is submitted."""
    return ArrayRecord(
        job_id=None,
        name=array.name,
        jobs=len(array.ranks),
        ranks=format_ranks(rank for job in array.ranks for rank in job),
        throttle=array.throttle,
        tries=array.group.tries,
        memory_scale=array.group.memory_scale,
        time_scale=array.group.time_scale,
    )


def refuse_too_many(jobs: int, most: int | None, what: str) -> None:
    """Raise StaggerError when a launch needs more jobs than there may be, one for its end included."""
    if most is not None and jobs + 1 > most:
        raise StaggerError(
            f"The launch needs {jobs + 1:,} jobs, but {what} is {most:,}: raise executor.ranks_per_job to"
            f" {math.ceil((jobs + 1) / max(1, most - 1)):,} times what it is, or launch fewer ranks with --limit."
        )


def split(ranks: list[int], per_job: int, most: int) -> list[list[list[int]]]:
    """Ranks as arrays of at most `most` jobs of `per_job` ranks.

    >>> split([0, 1, 2, 3, 4], 2, 2)
    [[[0, 1], [2, 3]], [[4]]]
    """
    jobs = [ranks[i : i + per_job] for i in range(0, len(ranks), per_job)]
    return [jobs[i : i + most] for i in range(0, len(jobs), most)]


def unique_name(name: str) -> str:
    """A job name that no other job has, so that a job can be found by it."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def throttles(workers: int | None, sizes: Sequence[int]) -> list[int | None]:
    """The throttle of each array, so that together they hold the run's: Slurm's %K counts per array.

    >>> throttles(100, [1001, 1001, 998]), throttles(5, [3]), throttles(None, [7])
    ([34, 33, 33], [3], [None])
    """
    if workers is None:
        return [None for _ in sizes]
    if workers < len(sizes):
        raise StaggerError(
            f"executor.workers is {workers}, but the run needs {len(sizes)} arrays, each of which runs one job at"
            f" least; set workers to {len(sizes)} or more, or raise ranks_per_job."
        )
    share, rest = divmod(workers, len(sizes))
    return [min(share + (i < rest), size) for i, size in enumerate(sizes)]
