"""The pickled steps of a run of Python objects: stored when it is launched, for its tasks and for stages that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.chain import Step
from stagger.pipeline.pickled import dump_pickle, load_pickle, sha256
from stagger.plan.stage_steps import create_steps
from stagger.rundir.run_folder import Pickle, RunFolder, RunRecord, Stage
from stagger.status.look import Look


def pickled(objects: Mapping[str, Sequence[Step]]) -> dict[str, bytes]:
    """Stage -> its pickled steps. Raises StaggerError when a step cannot be pickled."""
    return {name: dump_pickle(steps) for name, steps in objects.items()}


def store_steps(
    run: RunFolder, record: RunRecord, looks: Mapping[str, Look], payloads: Mapping[str, bytes]
) -> RunRecord:
    """Write the pickled steps of the stages that are not done. Call it under the run's lock. Returns the new record."""
    pickles = dict(record.pickles)
    for name, payload in payloads.items():
        look = looks[name]
        if not look.is_done:
            path = look.stage.folder.pickle(len(look.launches) + 1)
            run.storage.write(path, payload, private=record.spec.shared is None)
            pickles[name] = Pickle(path, sha256(payload))
    return replace(record, pickles=pickles)


def stored_steps(stage: Stage) -> Pickle:
    """Where the steps of a stage are stored. Raises StaggerError when they never were."""
    if (pickle := stage.record.pickles.get(stage.name)) is None:
        raise StaggerError(
            f"The steps of {stage.record.spec.run_dir} were never stored; launch it again from its Python script."
        )
    return pickle


def steps_of(stage: Stage) -> list[Any]:
    """The steps of a stage that was launched before, to plan it now. Raises StaggerError when they cannot be made."""
    if not stage.record.spec.pickled:
        return create_steps(stage.spec)
    pickle = stored_steps(stage)
    return create_steps(stage.spec, load_pickle(stage.run.storage, pickle.path, pickle.sha256))
