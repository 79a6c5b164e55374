"""The settings of jobs without a pipeline: those of a profile and of the command line, for `stagger doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagger.errors import StaggerError
from stagger.spec.assignments import assign
from stagger.spec.executors import SlurmSpec
from stagger.spec.messages import validated
from stagger.spec.models import StorageSpec
from stagger.spec.place import Place
from stagger.spec.profiles import Profile, chosen


def site_settings(
    profile: str | None, assignments: Sequence[str], executor: Mapping[str, Any]
) -> tuple[SlurmSpec, dict[str, dict[str, Any]]]:
    """The executor's settings and the storage options: `assignments` over `executor` over the profile.

    Raises StaggerError when one of them is wrong.
    """
    raw: dict[str, Any] = {"executor": {"type": "slurm", **executor}}
    for assignment in assignments:
        assign(raw, assignment)
    found = chosen(profile, "--profile")
    place = Place("stagger doctor", {}, found.elsewhere(raw))
    values = {**found.below(raw, StorageSpec.model_fields), **found.below_stage(raw)}
    settings: Profile = validated(Profile, values, place, ())
    if not isinstance(settings.executor, SlurmSpec):
        raise StaggerError("stagger doctor checks `executor.type: slurm` only; leave the type out.")
    return settings.executor, settings.storage_options
