"""The end job of a stage, which runs `python -I -m stagger.launch.finalize RUN_DIR STAGE SETTINGS` after its arrays.

SETTINGS is the path of the settings of the tasks: their storage options are needed to read run.json.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace

import orjson

from stagger.errors import StaggerError
from stagger.launch.check import enter
from stagger.launch.hand_over import start
from stagger.launch.leftovers import remove_leftovers
from stagger.launch.retry_policy import decide
from stagger.launch.stages import run_stages
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import Group, wait_for_launch
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.executors import RetrySpec
from stagger.spec.models import RunSpec
from stagger.status.efficiency import sentences
from stagger.status.look import Look, look_at_run
from stagger.status.report import write_stats
from stagger.storage.storage import hide_secrets
from stagger.task import read_argument
from stagger.terminal import logger

#: Seconds that an end job waits for the lock, which a local stage holds for as long as it runs.
LOCK_WAIT_S = 6 * 3600.0


def main(arguments: list[str]) -> int:
    """End a stage as `end_stage` does. Returns its exit status, or that of an error, which is logged."""
    try:
        return end_stage(*arguments)
    except StaggerError as error:
        for line in str(error).split("\n"):
            logger.error(line)
        return error.exit_status
    except OSError as error:
        logger.error(str(error))
        return 1


def end_stage(run_dir: str, name: str, settings: str) -> int:
    """Merge the statistics; retry failed ranks as `retries` allows; launch dependent stages if every rank is done."""
    known = orjson.loads(read_argument(settings))
    run, record = RunFolder.open(run_dir, known.get("storage_options"), patient=True)
    wait_for_launch(run.stage(record, name).folder, known.get("launch", 1))
    with run.changing(record):
        if not may_launch(record.spec, name):  # Then a user's retry need not wait for this job.
            return finalize(run, record, name)
        with run.lock.held(wait_s=LOCK_WAIT_S):
            return finalize(run, run.load() or record, name)


def may_launch(spec: RunSpec, name: str) -> bool:
    """Whether the end of stage `name` can launch anything: retries of its ranks, or stages that depend on it."""
    return spec.stage(name).retries is not None or any(name in stage.depends for stage in spec.stages)


def finalize(run: RunFolder, record: RunRecord, name: str) -> int:
    """End stage `name`, under the run's lock if it may launch anything.

    Returns the exit status: 1 if ranks are neither done nor retried, or if output files have different columns.
    """
    looks = look_at_run(run, record)
    look, stage = looks[name], run.stage(record, name)
    if not look.activity.ranks:  # Removed at once: a user's retry may start ranks while the statistics are merged.
        remove_leftovers(stage)
    stats = write_stats(look)
    for line in sentences(stats.get("efficiency", {})):
        logger.info(f"{name}: {line}")
    if not stats["missing_ranks"]:
        logger.success(f"{name}: all {stage.spec.tasks} ranks are done")
        for line in stats["schema_differences"]:
            logger.error(f"{name}: output files have different columns: {line}")
        launch_dependents(run, record, looks, name)
        return 1 if stats["schema_differences"] else 0
    logger.warning(f"{name}: ranks {stats['missing_ranks']} are not done")
    if stage.spec.retries is not None and retry_failed(look, stage.spec.retries):
        return 0
    failed = format_ranks(one.rank for one in look.failed)
    logger.error(f"{name}: ranks {stats['missing_ranks']} are not done ({failed} failed)")
    return 1


def retry_failed(look: Look, retries: RetrySpec) -> bool:
    """Relaunch the failed ranks that `retries` allows. Returns whether there were any."""
    name = look.stage.name
    decision = decide(retries, look.failed)
    given_up = defaultdict(list)
    for rank, reason in decision.given_up.items():
        given_up[reason].append(rank)
    for reason, ranks in given_up.items():
        logger.warning(f"{name}: given up: ranks {format_ranks(ranks)}: {reason}")
    for group in decision.again:
        logger.info(
            f"{name}: retry {group.tries} of {retries.max} for ranks {format_ranks(group.ranks)}, with"
            f" {group.memory_scale:g} times the memory and {group.time_scale:g} times the time"
        )
    if decision.again:
        start_again(look, decision.again)
    return bool(decision.again)


def start_again(look: Look, groups: list[Group]) -> None:
    """Relaunch the groups, each with its own resources, without ranks that are done or active by now."""
    enter(look.stage.record.spec)
    settled = look.done | look.activity.ranks
    left = [replace(group, ranks=[rank for rank in group.ranks if rank not in settled]) for group in groups]
    if left := [group for group in left if group.ranks]:
        start(look.stage, look, left)


def launch_dependents(run: RunFolder, record: RunRecord, looks: dict[str, Look], name: str) -> None:
    """Launch the Slurm stages that waited for stage `name`, which is done.

    Local stages do not run in this small job, but where the user runs `launch --wait` or `stagger retry`.
    """
    enter(record.spec)
    waited = [s.name for s in record.spec.stages if name in s.depends and s.executor.type == "slurm"]
    run_stages(run, record, looks, only=waited)


if __name__ == "__main__":
    logger.configure(patcher=hide_secrets)
    sys.exit(main(sys.argv[1:]))
