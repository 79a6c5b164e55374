"""Asks Slurm whether it would accept the jobs of a launch (`sbatch --test-only`): a site's rules are its answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from stagger.doctor.check import Check
from stagger.errors import StaggerError
from stagger.executor.arrays import unique_name
from stagger.executor.end_job import end_key
from stagger.executor.job_script import ScriptContext, array_script, finalize_script
from stagger.slurm import sbatch
from stagger.spec.executors import SlurmSpec

#: The jobs of a launch.
ARRAY, END = "an array", "the end job"


def as_launched(spec: SlurmSpec, folder: str) -> dict[str, str]:
    """The scripts of the jobs that a launch with these settings would submit: what they are -> script."""
    settings = os.path.join(folder, "settings.json")
    context = ScriptContext(spec, folder, "doctor", 1, os.getcwd(), log_dir=folder, settings=settings)
    name = f"{spec.name_prefix}doctor"
    ranks = [[0] * spec.ranks_per_job, [1] * spec.ranks_per_job]
    end = finalize_script(context, unique_name(f"{name}-end"), ["1"])
    alone = [line for line in end.splitlines(keepends=True) if not line.startswith("#SBATCH --dependency=")]
    return {ARRAY: array_script(context, unique_name(name), ranks, None, 0), END: "".join(alone)}


def rules_checks(scripts: Mapping[str, str]) -> Iterator[Check]:
    """Check that Slurm accepts each of the jobs."""
    refused = False
    for what, script in scripts.items():
        try:
            words = sbatch.refused(script)
        except StaggerError as error:
            yield Check("rules", "warning", f"Slurm does not say whether it accepts {what}: {error}")
            return
        if words:
            refused = True
            key = end_key(sbatch.key_to_change(words)) if what == END else None
            yield Check("rules", "problem", str(sbatch.Refused(words, what, key)))
    if not refused:
        yield Check("rules", "ok", "Slurm accepts an array and the end job with these settings")
