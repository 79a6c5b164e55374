"""What a stage requests of the cluster for each of its jobs: kinds of GPUs, and memory."""

from __future__ import annotations

import re

from stagger.blocks.planning.gpus import KINDS
from stagger.spec.executors import GPU_OPTIONS, SlurmSpec
from stagger.spec.models import StageSpec

#: Options of sbatch that may name a kind of GPU.
NAMING = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "constraint")


def gpus_of(stage: StageSpec, jobs: int) -> str:
    """The GPUs that the stage's executor requests, as --gpus takes them; empty if it names no kind.

    A kind is named by gres (`gpu:a100:2`), gpus (`a100:2`) or constraint (`a100`).
    """
    executor = stage.executor
    if not isinstance(executor, SlurmSpec):
        return ""
    for option in NAMING:
        text = str(executor.sbatch.get(option, "")).lower()
        words = [word for word in re.split(r"[:,&|()\s\[\]]+", text) if word and word != "gpu"]
        for word in words:
            kind = next((name for name in KINDS if name.lower() in re.split(r"[^a-z0-9]+", word)), None)
            if kind is None:
                continue
            numbers = [int(one) for one in words if one.isdecimal()]
            sizes = KINDS[kind].memory_gb
            told = re.search(r"(\d+)gb", word)
            memory = int(told[1]) if told else sizes[-1]
            return f"{kind}:{memory}GB x {jobs * max(1, *numbers, executor.gpus_per_task)}"
    return ""


def has_gpus(stage: StageSpec) -> bool:
    """Whether the stage's executor requests GPUs of Slurm."""
    executor = stage.executor
    return isinstance(executor, SlurmSpec) and bool(
        executor.gpus_per_task or any(option in executor.sbatch for option in GPU_OPTIONS)
    )


def memory_of(stage: StageSpec) -> float | None:
    """GB of host memory of one rank; None if the file leaves it to the partition."""
    executor = stage.executor
    if not isinstance(executor, SlurmSpec) or executor.mem_per_cpu_gb is None:
        return None
    return float(executor.mem_per_cpu_gb) * executor.cpus_per_task * 2**30 / 1e9
