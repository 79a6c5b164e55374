"""Settings of the Slurm executor that stand for one another: the one of a pipeline file replaces those of a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stagger.spec.executors import long_option

#: Groups of keys below `executor`, of which a job can have one, or which set the same thing.
ALTERNATIVES = (
    frozenset({"env.venv", "env.conda", "env.container"}),
    frozenset({"env.venv", "env.conda", "env.container_args"}),
    frozenset({"partition", "sbatch.partition"}),
    frozenset({"time", "sbatch.time"}),
    frozenset({"cpus_per_task", "sbatch.cpus-per-task"}),
    frozenset({"mem_per_cpu_gb", "sbatch.mem", "sbatch.mem-per-cpu", "sbatch.mem-per-gpu"}),
    frozenset({"gpus_per_task", "sbatch.gres", "sbatch.gpus", "sbatch.gpus-per-node", "sbatch.gpus-per-task"}),
    frozenset({"nodes_per_task", "sbatch.nodes"}),
    frozenset({"qos", "sbatch.qos"}),
    frozenset({"account", "sbatch.account"}),
    frozenset({"sbatch.exclusive", "sbatch.oversubscribe"}),
    frozenset({"sbatch.requeue", "sbatch.no-requeue"}),
)

#: Keys of `executor` that are mappings whose keys are in ALTERNATIVES.
PARTS = ("env", "sbatch")


def without_replaced(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `below` without those for which `above` has an alternative. Options of sbatch in `below` are full.

    >>> without_replaced({"time": "5", "sbatch": {"mem": "4G"}}, {"mem_per_cpu_gb": 2, "sbatch": {"constr": "a100"}})
    {'time': '5', 'sbatch': {}}
    """
    decided = set(_names(above))
    gone = {name for group in ALTERNATIVES if group & decided for name in group} | decided
    kept = {key: value for key, value in below.items() if key not in gone}
    for part in PARTS:
        if isinstance(inner := kept.get(part), Mapping):
            kept[part] = {key: value for key, value in inner.items() if f"{part}.{key}" not in gone}
    return kept


def written_in_full(executor: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the full names of sbatch's options."""
    if not isinstance(sbatch := executor.get("sbatch"), Mapping):
        return dict(executor)
    return {**executor, "sbatch": {_in_full(key): value for key, value in sbatch.items()}}


def _names(executor: Mapping[str, Any]) -> Iterator[str]:
    """The keys that have a value, those of PARTS as `part.key`."""
    for key, value in executor.items():
        if key in PARTS and isinstance(value, Mapping):
            yield from (f"{key}.{_in_full(str(inner))}" for inner, item in value.items() if item is not None)
        elif value is not None and not isinstance(value, Mapping):
            yield key


def _in_full(option: str) -> str:
    """The full name of an option; a wrong one as it is, for the error about it."""
    try:
        return long_option(option)
    except ValueError:
        return option
