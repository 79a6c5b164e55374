"""Removes the leftovers of killed attempts, and finds committed outputs that are lost."""

from __future__ import annotations

from stagger.blocks.step import clear_registry
from stagger.errors import StorageError, counted
from stagger.rundir.run_folder import Stage
from stagger.status.look import Look
from stagger.storage.storage import join
from stagger.task.upload_notes import abort_left_uploads
from stagger.terminal import logger


def remove_leftovers(stage: Stage) -> None:
    """Remove hidden files and unfinished uploads of killed attempts. Call it only while no rank of the stage runs."""
    folder = stage.folder
    try:
        for path in stage.record.outputs[stage.name]:
            folder.storage.remove_leftovers(path, folder.tag)
        if count := abort_left_uploads(folder):
            logger.info(f"{stage.name}: aborted {counted(count, 'unfinished upload')} of tasks that were killed")
        if stage.spec.blocks is not None:
            clear_registry(folder.storage, folder.path)
    except StorageError as error:
        logger.warning(f"{stage.name}: cannot remove the leftovers of killed tasks: {error}")


def lost_outputs(look: Look) -> dict[str, int]:
    """Committed outputs that are missing or have another size now: path -> rank. Costs one listing per folder."""
    with look.stage.folder.blaming():
        outputs = [(record["rank"], output) for record in look.completions for output in record["outputs"]]
        recorded = {output["path"]: (output["bytes"], rank) for rank, output in outputs}
        parents = {path.rpartition("/")[0] for path in recorded}
    sizes: dict[str, int] = {}
    for parent in parents:
        entries = look.stage.folder.storage.list(parent)
        sizes |= {join(parent, entry.name): entry.size for entry in entries}
    return {path: rank for path, (size, rank) in recorded.items() if sizes.get(path) != size}
