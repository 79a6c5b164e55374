"""`stagger retry`: relaunches ranks of a run that are not done, all or a choice of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stagger.errors import StaggerError, agreeing, counted
from stagger.executor.kinds import runner_of
from stagger.launch.again import undone
from stagger.launch.cancel import check_ranks, stages_behind
from stagger.launch.check import enter
from stagger.launch.follow import follow
from stagger.launch.foreign import warn_of_foreign
from stagger.launch.hand_over import Factors
from stagger.launch.launched import Launched
from stagger.launch.leaving import held_once_left
from stagger.launch.leftovers import lost_outputs
from stagger.launch.plans import check_needs_again
from stagger.launch.stages import lost_results, run_stages, with_swarms
from stagger.ranks import format_ranks, named_ranks
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.changes import changed_spec
from stagger.spec.models import StageSpec
from stagger.status.look import Look
from stagger.terminal import logger

#: The largest factor of memory or time, as for automatic retries.
LARGEST_FACTOR = 100


def retry(
    run: RunFolder,
    record: RunRecord,
    *,
    stage: str | None = None,
    ranks: set[int] | None = None,
    failed_only: bool = False,
    again: bool = False,
    lost: bool = False,
    checksums: bool = False,
    changes: Sequence[str] = (),
    memory_factor: float = 1.0,
    time_factor: float = 1.0,
    wait: bool = False,
) -> Launched:
    """Relaunch the ranks of a run that are neither done nor active.

    Args:
        run: the run directory.
        record: its run.json.
        stage: only this stage.
        ranks: only these ranks.
        failed_only: only ranks that failed.
        again: also ranks that are done.
        lost: also ranks that are done, but whose outputs are missing or have another size.
        checksums: with `lost`, also ranks whose outputs have another content.
        changes: overrides of settings, as `a.b=c`; they persist across retries.
        memory_factor: factor by which the jobs of this retry get more memory.
        time_factor: factor by which they get more time.
        wait: return when all Slurm jobs have ended.

    Raises:
        StaggerError: one of `ranks` is done, active or does not exist; or one of `changes` or a factor is not
            allowed.
    """
    with run.changing(record):
        enter(record.spec)
        chosen_stages = record.spec.chosen(stage)
        factors = checked_factors(chosen_stages, memory_factor, time_factor)
        for one in chosen_stages:
            check_ranks(one, ranks or set())
        if changes:
            changed_spec(record.spec, changes, stage)
        with held_once_left(run, record, stage, ranks) as (record, looks):
            if changes:
                record = replace(record, spec=changed_spec(record.spec, changes, stage))
                looks = {name: replace(look, stage=run.stage(record, name)) for name, look in looks.items()}
            names = [one.name for one in record.spec.chosen(stage)]
            redo = ranks_to_redo(looks, names, ranks, again, lost, checksums, everywhere=stage is None)
            chosen = {name: chosen_ranks(looks[name], ranks, failed_only, redo.get(name, set())) for name in names}
            starting = [name for name in names if redo.get(name) or not looks[name].is_done]
            check_needs_again(
                run.storage, record.spec, with_swarms(record.spec, starting)
            )  # Before anything is undone.
            for name in redo:  # This machine may not be able to run it.
                runner_of(record.spec, record.spec.stage(name)).check()
            for name in redo:
                looks[name] = undone(looks[name], redo[name])
                if not looks[name].done:
                    record = record.unplanned(name)  # All of it runs again, with its input as it is now.
            for name in redo:
                warn_of_readers(looks, name)
            warn_of_foreign(record, looks)
            if changes:
                run.save(record)
            launched = run_stages(run, record, looks, only=names, ranks=chosen, factors=factors)
        return follow(run, record, launched, None, chosen) if wait else launched


def checked_factors(stages: Sequence[StageSpec], memory: float, time: float) -> Factors:
    """The factors of a retry. Raises StaggerError when they are out of range, or no stage runs in jobs."""
    for name, factor in (("memory", memory), ("time", time)):
        if not 1 <= factor <= LARGEST_FACTOR:
            raise StaggerError(f"The {name} factor is {factor:g}; it must be from 1 to {LARGEST_FACTOR}.")
        if factor > 1 and all(stage.executor.type == "local" for stage in stages):
            raise StaggerError(f"The {name} factor is for Slurm jobs, and the ranks run on this machine; leave it out.")
    return Factors(memory, time)


def ranks_to_redo(
    looks: Mapping[str, Look],
    names: Sequence[str],
    ranks: set[int] | None,
    again: bool,
    lost: bool,
    checksums: bool,
    *,
    everywhere: bool,
) -> dict[str, set[int]]:
    """Stage -> its done ranks, among `ranks`, that run again: all of them with `again`, or those with `lost` outputs.

    `everywhere` leaves out lost outputs that only finished stages have read: they may be removed.
    """
    if again:
        found = {name: looks[name].done for name in names}
    elif lost:
        if everywhere:
            paths = lost_results(looks, names, checksums=checksums)
        else:
            paths = {name: lost_outputs(looks[name], checksums=checksums) for name in names}
        found = {name: {one.rank for one in of.values()} for name, of in paths.items()}
    else:
        return {}
    return {name: mine for name, done in found.items() if (mine := done if ranks is None else done & ranks)}


def warn_of_readers(looks: Mapping[str, Look], name: str) -> None:
    """Say which done ranks have read the earlier outputs of a stage, some of whose ranks run again."""
    look = looks[name]
    for other in stages_behind(look.stage.record.spec, look.stage.spec):
        if done := len(looks[other].done):
            logger.warning(
                f"{other}: {counted(done, 'rank', 'is')} done and {agreeing(done, 'has')} read the earlier outputs of"
                f" {name}; to repeat this, type: stagger retry {look.stage.run.path} --stage {other} --again"
            )


def chosen_ranks(look: Look, ranks: set[int] | None, failed_only: bool, redo: set[int]) -> set[int] | None:
    """The ranks of a stage to retry, None for all. Of those that are done, `redo` will be undone.

    Raises StaggerError when one of `ranks` cannot be rerun.
    """
    name = look.stage.name
    if ranks is not None:
        if done := (ranks & look.done) - redo:
            raise StaggerError(f"{_of(done, name)} done; to repeat {'them' if len(done) > 1 else 'it'}, add --again.")
        if active := ranks & look.activity.ranks:
            raise StaggerError(
                f"{_of(active, name)} queued or running; first type: stagger cancel {look.stage.run.path} --rank"
                f" {format_ranks(active)}"
            )
    if failed_only:
        failed = {one.rank for one in look.failed}
        return redo | (failed if ranks is None else ranks & failed)
    return ranks


def _of(ranks: set[int], stage: str) -> str:
    """The beginning of a sentence about ranks of a stage: `Rank 3 of clean is`."""
    return f"{named_ranks(ranks).capitalize()} of {stage} {agreeing(len(ranks), 'is')}"
