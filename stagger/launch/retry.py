"""`stagger retry`: relaunches ranks of a run that are not done, all or a choice of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stagger.errors import StaggerError
from stagger.launch.cancel import check_ranks
from stagger.launch.check import enter
from stagger.launch.follow import follow
from stagger.launch.launched import Launched
from stagger.launch.stages import run_stages
from stagger.ranks import format_ranks
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.changes import changed_spec
from stagger.status.look import Look, look_at_run


def retry(
    run: RunFolder,
    record: RunRecord,
    *,
    stage: str | None = None,
    ranks: set[int] | None = None,
    failed_only: bool = False,
    changes: Sequence[str] = (),
    wait: bool = False,
) -> Launched:
    """Relaunch the ranks of a run that are neither done nor active.

    Args:
        run: the run directory.
        record: its run.json.
        stage: only this stage.
        ranks: only these ranks.
        failed_only: only ranks that failed.
        changes: overrides of settings, as `a.b=c`; they persist across retries.
        wait: return when all Slurm jobs have ended.

    Raises:
        StaggerError: one of `ranks` is done, active or does not exist; or one of `changes` is not allowed.
    """
    with run.changing(record):
        enter(record.spec)
        with run.lock.held():
            record = run.load() or record
            if changes:
                record = replace(record, spec=changed_spec(record.spec, changes, stage))
            looks = look_at_run(run, record)
            names = [one.name for one in record.spec.chosen(stage)]
            chosen = {name: chosen_ranks(looks[name], ranks, failed_only) for name in names}
            if changes:
                run.save(record)
            launched = run_stages(run, record, looks, only=names, ranks=chosen)
        return follow(run, record, launched, None, chosen) if wait else launched


def chosen_ranks(look: Look, ranks: set[int] | None, failed_only: bool) -> set[int] | None:
    """The ranks of a stage to retry, None for all. Raises StaggerError when one of `ranks` cannot be rerun."""
    name = look.stage.name
    if ranks is not None:
        check_ranks(look.stage.spec, ranks)
        if done := ranks & look.done:
            raise StaggerError(f"Ranks {format_ranks(done)} of {name} are done; a completed rank is never run again.")
        if active := ranks & look.activity.ranks:
            raise StaggerError(
                f"Ranks {format_ranks(active)} of {name} are queued or running; stop them first with: stagger"
                f" cancel {look.stage.run.path} --rank {format_ranks(active)}"
            )
    if failed_only:
        failed = {one.rank for one in look.failed}
        return failed if ranks is None else ranks & failed
    return ranks
