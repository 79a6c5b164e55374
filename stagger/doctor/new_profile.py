"""Writes a first profile from what Slurm says: `stagger doctor --write-profile`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import yaml

from stagger.doctor.check import Check
from stagger.doctor.node import NO_SUBMITTING
from stagger.doctor.rules import ARRAY, as_launched
from stagger.errors import StaggerError, counted
from stagger.slurm import sbatch
from stagger.slurm.site import Site
from stagger.spec.executors import SlurmSpec
from stagger.spec.profiles import VARIABLE, user_file

#: The time limit of a new profile whose site wants one for every job, where the partition has no default.
TIME = "01:00:00"


def with_required_time(spec: SlurmSpec, site: Site, folder: str) -> SlurmSpec:
    """The settings with a time limit, if Slurm accepts jobs with one but not without."""
    partition = site.partition(spec.partition)
    limit = partition.default_time if partition is not None and partition.default_time else TIME
    timed = spec.model_copy(update={"time": limit})
    if spec.time is not None or _accepted(spec, folder) or not _accepted(timed, folder):
        return spec
    return timed


def _accepted(spec: SlurmSpec, folder: str) -> bool:
    return not sbatch.refused(as_launched(spec, folder)[ARRAY])


def profile_text(name: str, site: Site, spec: SlurmSpec, found: Iterable[Check]) -> str:
    """The content of a configuration file with the profile `name`: the settings `spec`, and what Slurm and the checks
    say besides.
    """
    partition = site.partition(spec.partition)
    settings: dict[str, Any] = {
        "partition": partition.name if partition else None,
        "account": next(iter(site.accounts), None),
        **spec.model_dump(mode="json", exclude_defaults=True, exclude={"type"}),
    }
    if any(check.name == "commands" and NO_SUBMITTING in check.text for check in found):
        settings |= yaml.safe_load(NO_SUBMITTING.removeprefix("executor."))
    settings = {key: value for key, value in settings.items() if value is not None}
    body = yaml.safe_dump(settings, sort_keys=False) if settings else "{}\n"
    lines = [
        f"# A profile of stagger, made from what Slurm says about the cluster {site.cluster}. Pipeline files take it",
        f"# with profile: {name}, and launches with --profile {name}; stagger schema --profiles lists all keys.",
        "profiles:",
        f"  {name}:",
        "    executor:",
        *(f"      {line}" for line in body.splitlines()),
        *(f"      # {line}" for line in notes(site, spec)),
    ]
    return "".join(f"{line}\n" for line in lines)


def notes(site: Site, spec: SlurmSpec) -> list[str]:
    """What else Slurm says, one line each, for the comments of a profile."""
    lines = [f"accounts of yours: {', '.join(site.accounts)}"] if len(site.accounts) > 1 else []
    lines += [f"qos: {site.qos[0]}  # yours: {', '.join(site.qos)}"] if site.qos else []
    for one in site.partitions:
        limit = f"time limit {one.max_time}" if one.max_time else "no time limit"
        default = f", {one.default_time} by default" if one.default_time else ""
        whole = ", given whole" if one.whole else ""
        lines.append(
            f"partition {one.name}: {counted(one.nodes, 'node')} of {counted(one.cpus, 'processor')}{whole};"
            f" {limit}{default}"
        )
    chosen = site.partition(spec.partition)
    if chosen is not None and chosen.whole:
        lines.append(
            f"Jobs get whole nodes of {counted(chosen.cpus, 'processor')}: put many ranks into each (ranks_per_job)."
        )
    return lines


def write_profile(text: str) -> str:
    """Write the text to a new configuration file, that of $STAGGER_CONFIG or else the user's. Returns its path.

    Raises StaggerError, and writes nothing, when there is such a file already.
    """
    path = os.path.abspath(os.path.expanduser(os.environ.get(VARIABLE) or user_file()))
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise StaggerError(f"There is a file {path} already, and it stays as it is: add the profile to it.") from None
    except OSError as error:
        raise StaggerError(f"{path} cannot be written: {error.strerror}.") from error
    return path
