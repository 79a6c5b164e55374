"""The checks of `stagger doctor`, in their order."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from stagger import __version__
from stagger.doctor.check import Check
from stagger.doctor.node import node_checks
from stagger.doctor.rules import END, as_launched, rules_checks
from stagger.doctor.storage import storage_checks
from stagger.errors import counted
from stagger.slurm import cluster
from stagger.spec.executors import SlurmSpec
from stagger.storage.storage import Storage, absolute, is_local

#: Seconds to try a storage that cannot be reached.
UNREACHABLE_S = 10.0


def checks(run_dir: str | None, options: dict[str, dict[str, Any]], spec: SlurmSpec) -> Iterator[Check]:
    """Run all checks, one after another. `spec` are the settings of the jobs to check."""
    yield Check(
        "versions", "ok", f"stagger {__version__}, Python {platform.python_version()}, submitit {version('submitit')}"
    )
    folder = absolute(run_dir) if run_dir else None
    if folder is not None:
        yield from storage_checks(folder, Storage(options, retry_s=UNREACHABLE_S, unreachable_s=UNREACHABLE_S))
    if not cluster.is_here():
        yield Check(
            "slurm", "problem", "There is no sbatch on this machine: runs work here with --executor local only."
        )
        return
    limits = cluster.limits()
    if limits.assumed:
        yield Check("slurm", "problem", limits.assumed)
        return
    most = cluster.submit_limit() if limits.enforced else None
    yield Check(
        "slurm",
        "ok",
        f"Slurm {limits.version}: MaxArraySize {limits.max_array_size:,}, MaxJobCount {limits.max_job_count:,},"
        f" {'no job limit' if most is None else 'at most ' + counted(most, 'job')} for you",
    )
    if cluster.accounting_answers():
        yield Check("accounting", "ok", "sacct answers")
    else:
        yield Check(
            "accounting",
            "warning",
            "sacct does not answer: a few minutes after a job has ended, only its own records show how it ended.",
        )
    yield from partition_checks(spec.sbatch.get("partition", spec.partition))
    shared = folder if folder is not None and is_local(folder) else os.getcwd()
    scripts = as_launched(spec, shared)
    rules = list(rules_checks(scripts))
    yield from rules
    accepted = all(check.state != "problem" for check in rules)
    yield from node_checks(shared, spec, scripts[END], accepted=accepted)


def partition_checks(wanted: Any) -> Iterator[Check]:
    found = cluster.partitions()
    up = [one for one in found if one.available]
    if wanted is not None and wanted not in {one.name for one in found}:
        yield Check(
            "partition", "problem", f"There is no partition {wanted}; choose from {', '.join(p.name for p in found)}."
        )
    elif not up:
        yield Check("partition", "problem", "No partition is up; ask the cluster's administrators.")
    else:
        texts = [f"{p.name} ({counted(p.nodes, 'node')}, {p.time_limit})" for p in up]
        yield Check("partition", "ok", ", ".join(texts))
