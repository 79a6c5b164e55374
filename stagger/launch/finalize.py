"""The end job of a stage: `python -I -m stagger.launch.finalize RUN_DIR STAGE OPTIONS`, when its arrays have ended."""

from __future__ import annotations

import sys
from collections import defaultdict

import orjson
from loguru import logger

from stagger.errors import StaggerError
from stagger.executor.kinds import LaunchedJobs
from stagger.launch.launch import launch_dependents, remove_leftovers, start_again
from stagger.launch.retry_policy import decide
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.rundir.stage_folder import StageFolder
from stagger.spec.executors import RetrySpec
from stagger.spec.models import StageSpec
from stagger.status.efficiency import sentences
from stagger.status.failed_ranks import find_failed
from stagger.status.report import write_stats
from stagger.status.stage_status import activity_of, stage_status


def main(arguments: list[str]) -> int:
    """Merge the statistics; run failed ranks again, as `retries` says; launch what waited, if every rank is done."""
    run_dir, name, options = arguments
    folder, record = RunFolder.open(run_dir, orjson.loads(options), patient=True)
    stage = record.spec.stage(name)
    stage_folder = folder.stage(record.spec, stage)
    stats = write_stats(stage_folder, stage)
    if not activity_of(stage_folder, read_launches(stage_folder), folder.path).ranks:
        remove_leftovers(stage_folder, record, stage)
    for line in sentences(stats.get("efficiency", {})):
        logger.info(f"{name}: {line}")
    if not stats["missing_ranks"]:
        logger.success(f"{name}: all {stage.tasks} ranks are done")
        launch_dependents(folder, record, name)
        return 0
    logger.warning(f"{name}: ranks {stats['missing_ranks']} are not done")
    if stage.retries is not None and retry(folder, record, stage, stage_folder, stage.retries):
        return 0
    failed = stage_status(stage_folder, stage, folder.path).failed_ranks
    logger.error(f"{name}: ranks {stats['missing_ranks']} are not done ({format_ranks(failed)} failed)")
    return 1


def retry(
    folder: RunFolder, record: RunRecord, stage: StageSpec, stage_folder: StageFolder, retries: RetrySpec
) -> bool:
    """Launch failed ranks again, as the policy says. True when some were."""
    launches = read_launches(stage_folder)
    jobs = LaunchedJobs(launches)
    active = activity_of(stage_folder, launches, folder.path, jobs).ranks
    decision = decide(retries, find_failed(stage_folder, launches, stage_folder.done(), active, jobs))
    given_up = defaultdict(list)
    for rank, reason in decision.given_up.items():
        given_up[reason].append(rank)
    for reason, ranks in given_up.items():
        logger.warning(f"{stage.name}: given up: ranks {format_ranks(ranks)}: {reason}")
    for group in decision.again:
        logger.info(
            f"{stage.name}: retry {group.tries} of {retries.max} for ranks {format_ranks(group.ranks)}, with"
            f" {group.memory_scale:g} times the memory and {group.time_scale:g} times the time"
        )
    if decision.again:
        start_again(folder, record, stage, decision.again)
    return bool(decision.again)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StaggerError as error:
        logger.error(str(error))
        sys.exit(error.exit_status)
