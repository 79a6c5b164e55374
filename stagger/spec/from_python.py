"""Builds a `RunSpec` from Python objects, as `load.py` does from a pipeline file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.errors import StaggerError
from stagger.spec.block_stage import of_blocks, without_packing
from stagger.spec.expected import described
from stagger.spec.messages import validated
from stagger.spec.models import RunSpec, StageSpec, StorageSpec
from stagger.spec.origins import origins_of
from stagger.spec.place import Place, absolute_at
from stagger.spec.profiles import Chosen, chosen
from stagger.spec.secret_check import IN_HOST, IN_JOB, IN_PYTHON, check_forms, check_secrets, check_storage_options
from stagger.storage.storage import UNREACHABLE_S, Storage, expand_variables

#: The keys of a run that say how its storage is reached.
STORAGE = ("storage_options",)


@dataclass(frozen=True)
class Given:
    """What one executor was given, under the names of the keys of a pipeline file.

    whole: the keys of the whole run, `run_dir` included.
    stage: the keys of its stage, `name`, `depends` and `uses` included, with `pipeline` or `blocks`, or both.
    executor: the settings of the executor, `type` included.
    """

    whole: Mapping[str, Any]
    stage: Mapping[str, Any]
    executor: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The executor in messages."""
        return f"{self.executor['type'].title()}Executor"


def from_objects(stages: Sequence[Given], *, reading: bool = False) -> RunSpec:
    """Make a run of one or several stages, each after those that it depends on or uses.

    `reading`: whether the numbers of blocks are read from the models of stages that host some. Raises StaggerError when
    an argument is wrong, or when the stages contradict one another.
    """
    for given in stages:
        _check_secrets(given)
    names = [f"{given.name} {given.stage['name']!r}" if len(stages) > 1 else given.name for given in stages]
    whole = _whole(stages, names)
    profile = chosen(whole.pop("profile", None), f"{names[0]}: profile")
    storage = Storage(profile.below(whole, STORAGE).get("storage_options", {}), unreachable_s=UNREACHABLE_S)
    origins: dict[str, str] = {}
    checked = []
    for given, name in zip(stages, names, strict=True):
        own = {**given.stage, "executor": dict(given.executor)}
        one = profile.below_stage(own)
        place = Place(name, {}, profile.elsewhere({**whole, **own}), python=True)
        if "blocks" in own:
            one["executor"] = without_packing(one["executor"], given.executor)
        prefix = f"stages.{given.stage['name']}." if len(stages) > 1 else ""
        origins |= origins_of(one, Place(given.name, {}, python=True), place.elsewhere, profile.name, {}, prefix=prefix)
        if "blocks" in own:
            one = of_blocks(one, own, place, (), storage if reading else None)
        checked.append(validated(StageSpec, one, place, ()))
        if "blocks" in own:
            checked[-1].pipeline[0].at(place.of(("blocks",)))
    return _run(whole, checked, profile, origins, Place(names[-1], {}, python=True))


def _check_secrets(given: Given) -> None:
    """Raise StaggerError when an argument holds a secret in clear text, or a variable that is not set."""
    place = Place(given.name, {}, python=True)
    check_storage_options(given.whole.get("storage_options"), place)
    expand_variables(given.whole.get("storage_options"), ("storage_options",))
    for values in (given.whole, {"name": given.stage["name"]}, given.executor):
        check_forms({key: item for key, item in values.items() if key != "storage_options"}, place, (), IN_JOB)
    for number, step in enumerate(given.stage.get("pipeline", ()), 1):
        check_secrets(step["params"], Place(f"Step {number} ({step['use']})", {}), (), IN_PYTHON)
    check_secrets(given.stage.get("blocks"), place, ("blocks",), IN_HOST)


def _whole(stages: Sequence[Given], names: Sequence[str]) -> dict[str, Any]:
    """The keys of the whole run: each from one of the executors, or the same from several."""
    whole: dict[str, Any] = {}
    by: dict[str, str] = {}
    for given, name in zip(stages, names, strict=True):
        run_dir = given.whole["run_dir"]
        if not isinstance(run_dir, (str, os.PathLike)):
            raise StaggerError(f"{name}: run_dir: expected a path, not {described(run_dir)}.")
        run_dir = absolute_at(os.fspath(run_dir), Place(name, {}, python=True))
        for key, value in {**given.whole, "run_dir": run_dir}.items():
            if key in whole and whole[key] != value:
                advice = "give them the same" if key == "run_dir" else "give it to one of them only, or the same to all"
                raise StaggerError(
                    f"{name}: {key} is {value!r}, but {by[key]} has {whole[key]!r}. Stages that depend on one another,"
                    f" or use one another, are one run: {advice}."
                )
            whole.setdefault(key, value)
            by.setdefault(key, name)
    return whole


def _run(
    whole: dict[str, Any], stages: list[StageSpec], profile: Chosen, origins: dict[str, str], place: Place
) -> RunSpec:
    values = profile.below(whole, StorageSpec.model_fields)
    origins |= origins_of(values, place, profile.elsewhere(whole), profile.name, {})
    run: RunSpec = validated(
        RunSpec,
        {
            **values,
            "name": stages[-1].name,
            "stages": stages,
            "cwd": os.getcwd(),
            "profile": profile.name,
            "origins": origins,
            "import_path": (script_folder(),),
            "pickled": True,
        },
        place,
        (),
    )
    return run


def script_folder() -> str:
    """The folder of the launching script, from which it imports its own modules."""
    import __main__

    file = getattr(__main__, "__file__", None)
    return os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
