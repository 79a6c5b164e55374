"""The resources of a retried job: more memory after it ran out of memory, more time after a timeout, other nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stagger.rundir.launch_records import Group
from stagger.slurm.answers import format_time, parse_memory, parse_time
from stagger.spec.executors import MEMORY_OPTIONS, SlurmSpec
from stagger.terminal import logger


@dataclass(frozen=True)
class Defaults:
    """The partition's memory (MiB per processor) and time (seconds) for a job that requests none; None if unknown."""

    memory_mib: int | None = None
    time_s: int | None = None


def scaled(spec: SlurmSpec, group: Group, defaults: Defaults) -> SlurmSpec:
    """The settings for a group of ranks: memory times `group.memory_scale`, time times `group.time_scale`.

    `defaults` replace what the settings leave out. Logs a warning, and scales nothing, where neither is known.

    >>> spec = SlurmSpec(type="slurm", mem_per_cpu_gb=1.5, time="10")
    >>> again = scaled(spec, Group([3], 1, memory_scale=2.0, time_scale=1.5), Defaults())
    >>> again.mem_per_cpu_gb, again.time
    (3.0, '0-00:15:00')
    """
    if group.memory_scale > 1:
        spec = _with_more_memory(spec, group.memory_scale, defaults.memory_mib)
    if group.time_scale > 1:
        spec = _with_time(spec, group.time_scale, defaults.time_s)
    return spec


def without_nodes(spec: SlurmSpec, nodes: Sequence[str]) -> SlurmSpec:
    """The settings for jobs that do not run on `nodes`, besides those that the settings exclude.

    >>> without_nodes(SlurmSpec(type="slurm", sbatch={"exclude": "n[1-2]"}), ["n4"]).sbatch
    {'exclude': 'n[1-2],n4'}
    """
    if not nodes:
        return spec
    excluded = [str(spec.sbatch["exclude"])] if spec.sbatch.get("exclude") else []
    return spec.model_copy(update={"sbatch": {**spec.sbatch, "exclude": ",".join([*excluded, *nodes])}})


def _with_more_memory(spec: SlurmSpec, scale: float, default_mib: int | None) -> SlurmSpec:
    """Give each rank `scale` times the memory. Where several ranks share a node, run fewer of them at once.

    With `ranks_at_once: auto` a rank takes `scale` times the processors, and so its share of the node's memory.
    """
    if spec.ranks_at_once == "auto":
        return spec.model_copy(update={"cpus_per_task": math.ceil(spec.cpus_per_task * scale)})
    at_once = max(1, math.floor(spec.ranks_at_once / scale))
    fewer = spec.model_copy(update={"ranks_at_once": at_once})
    return _with_memory(fewer, scale, scale * at_once / spec.ranks_at_once, default_mib)


def _with_memory(spec: SlurmSpec, scale: float, node_scale: float, default_mib: int | None) -> SlurmSpec:
    """Multiply the memory per processor or GPU by `scale`, and that of a whole node by `node_scale`."""
    if named := [option for option in MEMORY_OPTIONS if option in spec.sbatch]:
        factors = {option: node_scale if option == "mem" else scale for option in named}
        more = {option: f"{round(parse_memory(str(spec.sbatch[option])) * factors[option])}M" for option in named}
        return spec.model_copy(update={"sbatch": {**spec.sbatch, **more}})
    if spec.mem_per_cpu_gb is not None:
        return spec.model_copy(update={"mem_per_cpu_gb": spec.mem_per_cpu_gb * scale})
    if default_mib is not None:
        return spec.model_copy(update={"mem_per_cpu_gb": default_mib * scale / 1024})
    logger.warning("The jobs' default memory is unknown: retrying with the same memory; set executor.mem_per_cpu_gb.")
    return spec


def _with_time(spec: SlurmSpec, scale: float, default_s: int | None) -> SlurmSpec:
    limit_s = default_s if spec.time_limit is None else parse_time(spec.time_limit)
    if limit_s is None:
        logger.warning("The jobs' default time limit is unknown: retrying with the same time; set executor.time.")
        return spec
    more = format_time(round(limit_s * scale))
    if "time" in spec.sbatch:
        return spec.model_copy(update={"sbatch": {**spec.sbatch, "time": more}})
    return spec.model_copy(update={"time": more})
