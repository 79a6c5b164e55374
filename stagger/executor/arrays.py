"""Splits ranks into job arrays: their sizes, throttles, names and records."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from stagger.errors import StaggerError, counted
from stagger.executor.base import ArrayPlan
from stagger.executor.job_script import WARNING_S
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import ArrayRecord
from stagger.spec.models import StageSpec


def block_scripts(stage: StageSpec) -> dict[str, Any]:
    """The fields of ScriptContext that differ for block servers, which need time to drain and to hand over."""
    if stage.blocks is None:
        return {}
    return {"template": "blocks.sbatch.j2", "warning_s": max(WARNING_S, math.ceil(stage.blocks.drain) + 60)}


def array_record(array: ArrayPlan) -> ArrayRecord:
    """The record of an array before its submission: its job id is still None."""
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


def split(ranks: list[int], per_job: int, most: int) -> list[list[list[int]]]:
    """Split ranks into arrays of at most `most` jobs, each of at most `per_job` ranks.

    >>> split([0, 1, 2, 3, 4], 2, 2)
    [[[0, 1], [2, 3]], [[4]]]
    """
    jobs = [ranks[i : i + per_job] for i in range(0, len(ranks), per_job)]
    return [jobs[i : i + most] for i in range(0, len(jobs), most)]


def unique_name(name: str) -> str:
    """A job name that no other job has, so that squeue can find the job by name."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def throttles(workers: int | None, sizes: Sequence[int]) -> list[int | None]:
    """Divide the throttle `workers` among arrays of these sizes: Slurm's %K limits each array on its own.

    Raises StaggerError when there are more arrays than `workers`.

    >>> throttles(100, [1001, 1001, 998]), throttles(5, [3]), throttles(None, [7])
    ([34, 33, 33], [3], [None])
    """
    if workers is None:
        return [None for _ in sizes]
    if workers < len(sizes):
        raise StaggerError(
            f"executor.workers is {workers}, but the run needs {counted(len(sizes), 'array')}, and each runs at"
            f" least one job; set workers to {len(sizes)} or more, or raise ranks_per_job."
        )
    share, rest = divmod(workers, len(sizes))
    return [min(share + (i < rest), size) for i, size in enumerate(sizes)]
