"""Makes the steps of a rank: anew, but with what those of the rank before have loaded."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from stagger.pipeline.chain import Step, StepCount, build
from stagger.pipeline.hooks import bound_steps, kept_names
from stagger.pipeline.task_context import TaskContext
from stagger.rundir.plan_file import RankPlan
from stagger.rundir.stage_folder import StageFolder
from stagger.storage.storage import Storage
from stagger.task import TaskSettings


def made_steps(settings: TaskSettings, folder: StageFolder, plan: RankPlan, task: TaskContext) -> list[Step]:
    """The steps, created anew for each rank so that no state carries over, and bound to the task."""
    steps = load_steps(settings, folder.storage, plan)
    take_over(folder.plan(settings.fingerprint), steps)
    for step in bound_steps(steps):
        step.bind(task)
    return steps


def step_counts(settings: TaskSettings, plan: RankPlan, task: TaskContext) -> list[StepCount]:
    """A count for each step, with the writer of the documents that it removes, if these are wanted."""
    counts = [StepCount(step["use"]) for step in plan.steps]
    if any("removed" in step for step in plan.steps):
        from stagger.steps.removed import removal_writers  # Imported late: few pipelines keep what they remove.

        for count, writer in zip(counts, removal_writers(plan.steps, settings.commit == "shard"), strict=True):
            if writer is not None:
                writer.bind(task)
                count.removal = writer
    return counts


def load_steps(settings: TaskSettings, storage: Storage, plan: RankPlan) -> list[Step]:
    """The steps of the plan, by name; for a run of Python objects, from its pickle."""
    if settings.pickle_path:
        from stagger.pipeline.pickled import load_pickle

        return load_pickle(storage, settings.pickle_path, settings.pickle_sha256)
    return [build(step["use"], step["params"]) for step in plan.steps]


def repeatable_steps(plan: RankPlan, steps: list[Step]) -> list[bool]:
    """For each step of a rank, whether it may be called once per shard."""
    if len(bound_steps(steps)) == len(steps):
        return [True] * len(steps)
    from stagger.datatrove.state import repeatable

    return [
        repeatable(step, declared=spec.get("stateless", False)) for spec, step in zip(plan.steps, steps, strict=True)
    ]


def committed_blocks(steps: list[Step], task: TaskContext) -> AbstractContextManager[None]:
    """A context in which what blocks of datatrove write are outputs of the task, unless all steps are stagger's."""
    if all(type(step).__module__.startswith("stagger.") for step in steps):
        return nullcontext()
    from stagger.datatrove.patches import committed_with

    return committed_with(task, steps)


#: What the steps of the last rank that this process has done hand on, by the plan of the rank: number of the step ->
#: attribute -> value.
HANDED_ON: dict[str, dict[int, dict[str, Any]]] = {}


def handed_on() -> bool:
    """Whether steps have handed something on."""
    return any(any(kept.values()) for kept in HANDED_ON.values())


def take_over(plan: str, steps: list[Step]) -> None:
    """Give steps what those of an earlier rank of this plan have loaded (`kept` in hooks.py)."""
    for number, values in HANDED_ON.get(plan, {}).items():
        vars(steps[number]).update(values)


def hand_on(plan: str, steps: list[Step]) -> None:
    """Keep what the steps of a rank that is done have loaded, for the next rank of this process."""
    kept: dict[int, dict[str, Any]] = {}
    for number, step in enumerate(steps):
        names = kept_names(step)
        if not names and "datatrove" in sys.modules:
            from stagger.datatrove.kept import kept_by_block

            names = kept_by_block(step)
        if names:
            kept[number] = {name: value for name, value in vars(step).items() if name in names}
    HANDED_ON.clear()
    HANDED_ON[plan] = kept
