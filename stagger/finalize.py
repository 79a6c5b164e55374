"""The job that runs when all arrays of a stage have ended: `python -I -m stagger.finalize RUN_DIR STAGE OPTIONS`."""

from __future__ import annotations

import sys

import orjson
from loguru import logger

from stagger.errors import StaggerError
from stagger.launch import launch_dependents, remove_leftovers
from stagger.launches import read_launches
from stagger.ranks import format_ranks
from stagger.report import write_stats
from stagger.run_folder import RunFolder
from stagger.status import activity_of, stage_status


def main(arguments: list[str]) -> int:
    """Merge the statistics; launch the stages that were waiting, if every rank of this one is done."""
    run_dir, name, options = arguments
    folder, record = RunFolder.open(run_dir, orjson.loads(options), patient=True)
    stage = record.spec.stage(name)
    stage_folder = folder.stage(record.spec, stage)
    stats = write_stats(stage_folder, stage)
    if not activity_of(stage_folder, read_launches(stage_folder), folder.path).ranks:
        remove_leftovers(stage_folder, record, stage)
    if stats["missing_ranks"]:
        failed = stage_status(stage_folder, stage, folder.path).failed_ranks
        logger.error(f"{name}: ranks {stats['missing_ranks']} are not done ({format_ranks(failed)} failed)")
        return 1
    logger.success(f"{name}: all {stage.tasks} ranks are done")
    launch_dependents(folder, record, name)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StaggerError as error:
        logger.error(str(error))
        sys.exit(error.exit_status)
