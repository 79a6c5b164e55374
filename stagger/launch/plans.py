"""Plans the stages whose input is complete: creates the steps once, and lists the input."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from stagger.blocks.planning.fit import check_fit
from stagger.blocks.serving.keys import check_place, key_path
from stagger.errors import StaggerError
from stagger.launch.publish import check_publishing
from stagger.pipeline.chain import Step
from stagger.pipeline.hooks import Reader
from stagger.pipeline.names import add_import_path
from stagger.plan.datatrove_steps import refuse_unlike_readers, without_empty_texts
from stagger.plan.stage_plan import StagePlan, make_plan
from stagger.plan.stage_steps import create_steps
from stagger.plan.step_checks import check_needs, output_folders, output_names
from stagger.plan.upstream import Upstream, writer_of
from stagger.rundir.output_names import OutputNames, Places
from stagger.rundir.records import Completion
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.blocks import BlocksSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.look import done_ranks
from stagger.storage.storage import Storage

#: The steps of a run of a pipeline file, which names them all.
NO_OBJECTS: Mapping[str, Sequence[Step]] = MappingProxyType({})

#: The steps whose `check_retry` does anything.
MODEL_STEPS = ("score_blocks", "embed_blocks")


def ready_stages(spec: RunSpec, done: Collection[str]) -> list[StageSpec]:
    """The stages whose input is complete: those that depend on nothing, or only on `done` stages."""
    return [stage for stage in spec.stages if set(done).issuperset(stage.depends)]


@dataclass(frozen=True)
class Pipeline:
    """The stages of a launch: their steps, created once, where these write, and the names of the files they write."""

    spec: RunSpec
    steps: dict[str, list[Any]]
    outputs: dict[str, list[str]]
    names: dict[str, list[OutputNames]]

    @classmethod
    def create(cls, spec: RunSpec, objects: Mapping[str, Sequence[Step]] = NO_OBJECTS) -> Pipeline:
        """Create the steps; the default of a reader may depend on the others. `objects` maps stages to their steps, in
        a run made of Python objects.

        Raises StaggerError when a step cannot be created or called, or when stages would write the same files.
        """
        steps = {stage.name: create_steps(stage, objects.get(stage.name)) for stage in spec.stages}
        spec = without_empty_texts(spec, steps)
        refuse_unlike_readers(spec, steps)
        outputs = {stage.name: output_folders(stage, steps[stage.name]) for stage in spec.stages}
        check_publishing(spec, outputs)
        names = {stage.name: output_names(steps[stage.name]) for stage in spec.stages}
        refuse_same_names(names)
        return cls(spec, steps, outputs, names)

    def check_needs(self, storage: Storage) -> None:
        """Raise StaggerError when something is missing that a step needs beside its input, such as a model."""
        for stage in self.spec.stages:
            check_needs(storage, stage, self.steps[stage.name], swarms_of(self.spec, stage))
            check_key(self.spec, stage)
            check_fit(storage, stage)

    def inputs(self, plans: Mapping[str, StagePlan]) -> Iterator[str]:
        """The paths of all shards in the plans."""
        for name, plan in plans.items():
            if isinstance(first := self.steps[name][0], Reader):
                yield from map(first.path_of, plan.ranks.table)

    def later_inputs(self, storage: Storage, planned: Collection[str]) -> Iterator[str]:
        """The paths of what stages that are not `planned` yet would read now, but for outputs of other stages."""
        places = Places()
        for name in self.steps.keys() - planned:
            first = self.steps[name][0]
            ahead = [Upstream(one, self.names[one], ()) for one in stages_ahead(self.spec, name)]
            with contextlib.suppress(StaggerError):  # Its input is not there yet.
                found = map(first.path_of, first.find_shards(storage)) if isinstance(first, Reader) else ()
                yield from (path for path in found if not writer_of(path, ahead, places))


def check_needs_again(storage: Storage, spec: RunSpec, names: Iterable[str]) -> None:
    """Check for the stages `names` of an earlier launch that what they need beside their input is still there.

    Raises StaggerError if not. Only steps with models are created, since this runs under the run's lock.
    """
    for name in names:
        stage = spec.stage(name)
        check_key(spec, stage)
        if not spec.pickled and any(step.use in MODEL_STEPS for step in stage.pipeline):
            check_needs(storage, stage, create_steps(stage), swarms_of(spec, stage), again=True)


def swarms_of(spec: RunSpec, stage: StageSpec) -> dict[str, BlocksSpec | None]:
    """The swarms that a stage uses: name -> its key `blocks`."""
    return {name: spec.stage(name).blocks for name in stage.uses}


def check_key(spec: RunSpec, stage: StageSpec) -> None:
    """Raise StaggerError when the servers of a stage would find no place for the key of those that may talk to them."""
    if stage.blocks is not None and stage.blocks.host == "transformer":
        options = stage.blocks.host_options
        if options.get("encrypt", True):
            try:
                check_place(key_path(spec.run_dir, options.get("keys")))
            except StaggerError as error:
                raise StaggerError(f"{stage.name}: {error}") from None


def refuse_same_names(names: Mapping[str, list[OutputNames]]) -> None:
    """Raise StaggerError when two stages would write the same files: each replaces those of the other."""
    places = Places()
    of: dict[tuple[str, str], str] = {}
    pairs = itertools.combinations([(stage, one) for stage, mine in names.items() for one in mine], 2)
    for (first, one), (second, other_names) in pairs:
        if places.overlap(one, other_names):
            who = f"The stages {first} and {second}" if first != second else f"Two writers of {first}"
            raise StaggerError(
                f"{who} would write the same files, such as {one.samples[0]}: give each its own folder, or names that"
                " differ."
            )
    for stage, mine in names.items():
        for one in mine:
            name = one.templates[0] if one.templates else ""
            other = of.setdefault((places.folder(one.folder), name), stage)
            if other != stage and "{stem}" not in name:
                raise StaggerError(
                    f"The stages {other} and {stage} would write the same files, {name} in {one.folder}: give each its"
                    " own folder or filename."
                )


def stages_ahead(spec: RunSpec, name: str) -> list[str]:
    """The stages that a stage depends on, directly or through others, in the order of the file."""
    ahead: set[str] = set()
    for stage in reversed(spec.stages):
        if stage.name == name or stage.name in ahead:
            ahead.update(stage.depends)
    return [stage.name for stage in spec.stages if stage.name in ahead]


#: Stage -> its completion records.
Completions = Callable[[str], list[Completion]]


def plan_stages(
    storage: Storage,
    stages: Iterable[StageSpec],
    made: Pipeline,
    completions: Completions,
) -> dict[str, StagePlan]:
    """Plan `stages`, for which all stages ahead are done. Returns stage name -> plan.

    Of files with names of outputs of the stages ahead, each stage reads those that `completions`, the records of those
    stages, list. Raises StaggerError as `make_plan` does, and for a stage that does not wait for what it reads.
    """
    plans = {}
    for stage in stages:
        ahead = stages_ahead(made.spec, stage.name)
        upstream = [Upstream(one, made.names[one], paths(completions(one))) for one in ahead]
        plans[stage.name] = make_plan(storage, stage, made.steps[stage.name], upstream)
        refuse_missing_depends(made, plans[stage.name])
    return plans


def paths(completions: Iterable[Completion]) -> list[str]:
    """The paths of all outputs in completion records."""
    return [output["path"] for record in completions for output in record["outputs"]]


def refuse_missing_depends(made: Pipeline, plan: StagePlan) -> None:
    """Raise StaggerError when a stage would read what another stage writes, without waiting for it."""
    mine = plan.stage.name
    ahead = (mine, *stages_ahead(made.spec, mine))
    others = [Upstream(one, names, ()) for one, names in made.names.items() if one not in ahead]
    if not any(one.names for one in others):
        return
    places = Places()
    for path in made.inputs({mine: plan}):
        if other := writer_of(path, others, places):
            raise StaggerError(
                f"{mine} reads files that {other} writes, such as {path}, but does not wait for it: write depends:"
                f" [{', '.join(dict.fromkeys((*plan.stage.depends, other)))}], or give {other} another folder."
            )


def plan_for_show(
    run: RunFolder, spec: RunSpec, objects: Mapping[str, Sequence[Step]] = NO_OBJECTS, *, fresh: bool = False
) -> tuple[Pipeline, dict[str, StagePlan], dict[str, set[int]]]:
    """The stages, stage name -> plan, for those whose input is complete, and stage name -> done ranks.

    With `fresh`, no rank counts as done. Changes nothing.
    """
    add_import_path(spec.import_path)
    done = {stage.name: set() if fresh else done_ranks(stage) for stage in run.stages(RunRecord(spec))}
    complete = {name for name, ranks in done.items() if len(ranks) >= spec.stage(name).tasks}
    made = Pipeline.create(spec, objects)
    stages = ready_stages(made.spec, complete)
    completions = completions_in(run, spec, done)
    return made, plan_stages(run.storage, stages, made, completions), done


def completions_in(run: RunFolder, spec: RunSpec, done: Mapping[str, set[int]]) -> Completions:
    """Reads the completion records of the ranks that are done."""
    return lambda name: run.stage(RunRecord(spec), name).folder.completions(done[name])
