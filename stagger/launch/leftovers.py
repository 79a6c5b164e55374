"""What killed attempts left behind, and what is no longer there of what was done."""

from __future__ import annotations

from loguru import logger

from stagger.blocks.step import clear_registry
from stagger.errors import StorageError
from stagger.rundir.run_folder import Stage
from stagger.status.look import Look
from stagger.storage.storage import join
from stagger.task.upload_notes import abort_left_uploads


def remove_leftovers(stage: Stage) -> None:
    """Remove what killed attempts left behind, invisible as it is; only while nobody is writing for the stage."""
    folder = stage.folder
    try:
        for path in stage.record.outputs[stage.name]:
            folder.storage.remove_leftovers(path, folder.tag)
        if count := abort_left_uploads(folder):
            logger.info(f"{stage.name}: aborted {count} unfinished uploads of tasks that were killed")
        if stage.spec.blocks is not None:
            clear_registry(folder.storage, folder.path)
    except StorageError as error:
        logger.warning(f"{stage.name}: what killed tasks left behind cannot be removed: {error}")


def lost_outputs(look: Look) -> list[str]:
    """Outputs of ranks that are done which are not there any more as they were committed: one listing a folder."""
    recorded = [output for record in look.completions for output in record["outputs"]]
    sizes: dict[str, int] = {}
    for parent in {output["path"].rpartition("/")[0] for output in recorded}:
        entries = look.stage.folder.storage.list(parent)
        sizes |= {join(parent, entry.name): entry.size for entry in entries}
    return [output["path"] for output in recorded if sizes.get(output["path"]) != output["bytes"]]
