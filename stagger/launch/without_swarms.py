"""Runs without their swarms, for rehearsals and looks at documents: steps that use one work by themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.chain import Step
from stagger.pipeline.hooks import BoundStep
from stagger.plan.stage_steps import create_steps
from stagger.spec.models import RunSpec, StageSpec
from stagger.spec.references import literal
from stagger.terminal import logger


def without_swarms(
    spec: RunSpec, objects: Mapping[str, Sequence[Step]]
) -> tuple[RunSpec, Mapping[str, Sequence[Step]]]:
    """The run without the stages that host blocks, and its steps if they are Python objects.

    Raises StaggerError for servers that no stage uses, and for a stage that cannot do without them.
    """
    hosting = [stage.name for stage in spec.stages if stage.blocks is not None]
    if not hosting:
        return spec, objects
    for name in hosting:
        if not spec.users_of(name):
            raise StaggerError(f"{name} hosts blocks, which no stage uses: there is nothing to rehearse.")
    stages, made = [], dict(objects)
    for stage in spec.stages:
        if stage.blocks is None:
            steps = create_steps(stage, objects.get(stage.name))[: len(stage.pipeline)]
            changes = changes_of(spec, stage, steps)
            if stage.uses and not any(changes):
                raise StaggerError(
                    f"{stage.name} uses the servers of {', '.join(stage.uses)}, and a rehearsal has none: try the run"
                    " itself with --limit 1 (in Python: limit=1)."
                )
            if stage.name in objects:
                made[stage.name] = changed(steps, changes)
            stages.append(_alone(stage, changes, hosting))
    return spec.model_copy(update={"stages": tuple(stages)}), {one.name: made[one.name] for one in stages if made}


def alone(spec: RunSpec, stage: StageSpec, steps: Sequence[Any]) -> list[Any]:
    """The steps of a stage as they work without servers. Raises StaggerError for a stage that hosts blocks."""
    if stage.blocks is not None:
        raise StaggerError(f"{stage.name} hosts blocks, and has no documents: choose a stage that uses it.")
    return changed(steps, changes_of(spec, stage, steps))


def changes_of(spec: RunSpec, stage: StageSpec, steps: Sequence[Any]) -> list[Mapping[str, Any]]:
    """For each step, the parameters that it has where no servers run; empty for one that needs none."""
    swarms = {name: spec.stage(name).blocks for name in stage.uses}
    changes = [step.alone(swarms) if isinstance(step, BoundStep) else {} for step in steps]
    if any(changes):
        logger.info(f"{stage.name}: no servers run; its model is computed here")
    return changes


def changed(steps: Sequence[Any], changes: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The steps, with copies in place of those that have changes."""
    return [_changed(step, change) if change else step for step, change in zip(steps, changes, strict=True)]


def _changed(step: Any, change: Mapping[str, Any]) -> Any:
    other = copy.copy(step)
    for name, value in change.items():
        setattr(other, name, value)
    return other


def _alone(stage: StageSpec, changes: Sequence[Mapping[str, Any]], hosting: Sequence[str]) -> StageSpec:
    pipeline = [
        step.model_copy(update={"params": {**step.params, **{key: _written(item) for key, item in change.items()}}})
        for step, change in zip(stage.pipeline, changes, strict=True)
    ]
    depends = tuple(name for name in stage.depends if name not in hosting)
    return stage.model_copy(update={"pipeline": tuple(pipeline), "uses": (), "depends": depends})


def _written(value: Any) -> Any:
    """A value as a pipeline file has it."""
    return literal(value) if isinstance(value, str) else value
