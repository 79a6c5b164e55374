"""Builds a `RunSpec` from Python objects, as `load.py` does from a pipeline file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from stagger.errors import StaggerError
from stagger.spec.expected import described
from stagger.spec.messages import validated
from stagger.spec.models import RunSpec, StageSpec, StorageSpec
from stagger.spec.origins import origins_of
from stagger.spec.place import Place, absolute_at
from stagger.spec.profiles import chosen
from stagger.spec.secret_check import IN_JOB, IN_PYTHON, check_forms, check_secrets, check_storage_options
from stagger.storage.storage import expand_variables


def from_objects(values: dict[str, Any], stage: dict[str, Any], executor: Mapping[str, Any]) -> RunSpec:
    """Make a run of one stage, whose arguments are named like the keys of a pipeline file. Raises StaggerError when an
    argument is wrong.
    """
    place = Place(f"{executor['type'].title()}Executor", {}, python=True)
    if not isinstance(values["run_dir"], (str, os.PathLike)):
        raise StaggerError(f"{place.file}: run_dir: expected a path, not {described(values['run_dir'])}.")
    check_storage_options(values.get("storage_options"), place)
    expand_variables(values.get("storage_options"), ("storage_options",))  # Raises for a variable that is not set.
    check_forms({key: item for key, item in values.items() if key != "storage_options"}, place, (), IN_JOB)
    check_forms(dict(executor), place, (), IN_JOB)
    for number, step in enumerate(stage["pipeline"], 1):
        check_secrets(step["params"], Place(f"Step {number} ({step['use']})", {}), (), IN_PYTHON)
    profile = chosen(values.pop("profile", None), f"{place.file}: profile")
    own = {**stage, "name": values["name"], "executor": dict(executor)}
    elsewhere = profile.elsewhere({**values, **own})
    whole, one = profile.below(values, StorageSpec.model_fields), profile.below_stage(own)
    checked = validated(StageSpec, one, Place(place.file, {}, elsewhere, python=True), ())
    run_dir = absolute_at(str(values["run_dir"]), place)
    run = {**whole, "run_dir": run_dir, "stages": [checked], "cwd": os.getcwd()}
    run |= {"profile": profile.name, "origins": origins_of({**whole, **one}, place, elsewhere, profile.name, {})}
    spec: RunSpec = validated(RunSpec, {**run, "import_path": (script_folder(),), "pickled": True}, place, ())
    return spec


def script_folder() -> str:
    """The folder of the launching script, from which it imports its own modules."""
    import __main__

    file = getattr(__main__, "__file__", None)
    return os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
