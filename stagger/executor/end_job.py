"""The end job's options for sbatch: what it inherits from its stage, and what it has of its own."""

from __future__ import annotations

import re
from typing import Any

from stagger.slurm.answers import format_time, parse_time
from stagger.spec.executors import GPU_OPTIONS, MEMORY_OPTIONS, SlurmSpec

#: The end job's time limit in seconds, unless the stage's is shorter: a partition or QOS that takes the stage takes it.
TIME_S = 1800

#: Options of sbatch that describe where a job runs, or who runs it: the end job has its stage's. All others describe
#: what the stage's jobs do, need or wait for. Options of a site's plug-ins are not inherited, either: some of them
#: start the job in a container.
INHERITED = (
    "account",
    "cluster-constraint",
    "clusters",
    "comment",
    "constraint",
    "exclude",
    "extra",
    "gid",
    "mcs-label",
    "partition",
    "prefer",
    "qos",
    "reservation",
    "uid",
    "wckey",
)

#: Options that name the very nodes of a job: inherited only if the stage's jobs need one node, as the end job does.
NODES = ("nodelist", "nodefile")

#: Options that hold for the nodes of the stage's partition: not inherited by an end job in another partition.
OF_PARTITION = ("constraint", "nodefile", "nodelist", "prefer", "reservation")


def end_key(key: str) -> str:
    """The key below `executor.end` for what `key` sets for the stage's jobs.

    >>> end_key("executor.mem_per_cpu_gb"), end_key("the constraint in executor.sbatch")
    ('executor.end.mem_gb', 'the constraint in executor.end.sbatch')
    """
    for stage, own in (("mem_per_cpu_gb", "mem_gb"), ("gpus_per_task", "gpus")):
        key = key.replace(f"executor.{stage}", f"executor.end.{own}")
    return re.sub(r"executor\.(?!end\.)", "executor.end.", key)


def end_options(spec: SlurmSpec, tasks: int = 1) -> dict[str, Any]:
    """The end job's own options: where it runs, and its time, processors, memory and GPUs.

    `tasks` is the number of ranks of the stage.
    """
    end = spec.end
    stage = {"partition": spec.partition, "qos": spec.qos, "account": spec.account, **spec.sbatch}
    one_node = spec.nodes_per_task == 1 and str(spec.sbatch.get("nodes", 1)) == "1"
    elsewhere = end.partition not in (None, stage["partition"])
    names = (*INHERITED, *(NODES if one_node else ()))
    inherited = {option: stage.get(option) for option in names if not (elsewhere and option in OF_PARTITION)}
    chosen = {"partition": end.partition, "qos": end.qos, "account": end.account}
    options = {
        **inherited,
        **{option: value for option, value in chosen.items() if value},
        "time": end_time(spec),
        "cpus-per-task": str(end.cpus_per_task),
        "mem": f"{round((end.mem_gb or memory_gb(tasks)) * 1024)}M",
        "gres": None if elsewhere and end.gpus is None else gpus(spec),
    }
    replaced = _replaced(end.sbatch)
    kept = {option: value for option, value in options.items() if value and option not in replaced}
    return {**kept, **end.sbatch}


def _replaced(sbatch: dict[str, Any]) -> set[str]:
    """The options that those of `executor.end.sbatch` stand for: sbatch takes one request for memory, one for GPUs."""
    return {option for group in (MEMORY_OPTIONS, GPU_OPTIONS) if not set(group).isdisjoint(sbatch) for option in group}


def memory_gb(tasks: int) -> int:
    """The end job's memory in GiB: a completion record takes 6 KB in memory, and more with many outputs.

    >>> memory_gb(8000), memory_gb(1_000_000)
    (2, 12)
    """
    return 2 + tasks // 100_000


def end_time(spec: SlurmSpec) -> str:
    """The end job's time limit: `executor.end.time`, or TIME_S, or the stage's limit if that is shorter."""
    if spec.end.time is not None:
        return spec.end.time
    limit_s = parse_time(spec.time_limit) if spec.time_limit is not None else None
    return format_time(min(TIME_S, limit_s or TIME_S))


def gpus(spec: SlurmSpec) -> str | None:
    """The end job's GPUs as a `gres`; None if it has none.

    A partition for GPUs may refuse jobs without any. An end job in the partition of a stage with GPUs therefore has
    one, of the same type.

    >>> gpus(SlurmSpec(type="slurm", sbatch={"gpus-per-node": "a100:4"})), gpus(SlurmSpec(type="slurm"))
    ('gpu:a100:1', None)
    """
    if spec.end.gpus is not None:
        return f"gpu:{spec.end.gpus}" if spec.end.gpus else None
    for option in GPU_OPTIONS:
        if (value := spec.sbatch.get(option)) and (kind := gpu_type(option, str(value))) is not None:
            return f"gpu:{kind}:1" if kind else "gpu:1"
    return "gpu:1" if spec.gpus_per_task and "gres" not in spec.sbatch else None


def gpu_type(option: str, value: str) -> str | None:
    """The type of GPU that an option requests; empty for any type, None if it requests no GPU.

    >>> [gpu_type("gres", value) for value in ("gpu:2", "gpu:a100:2", "gres/gpu:v100=1,shard:2", "gpu", "lustre:1")]
    ['', 'a100', 'v100', '', None]
    >>> gpu_type("gpus", "h100:4"), gpu_type("gpus-per-task", "4")
    ('h100', '')
    """
    if option.startswith("gpus"):
        kind, colon, _ = value.rpartition(":")
        return kind if colon else ""
    found = re.search(r"(?:^|,|/)gpu(?::([A-Za-z][\w.-]*))?(?:[:=]\d+)?(?=,|\(|$)", value)
    return None if found is None else found[1] or ""
