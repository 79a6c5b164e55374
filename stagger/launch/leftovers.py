"""Removes the leftovers of killed attempts, and finds committed outputs that are lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.filesize import decimal

from stagger.blocks.step import clear_registry
from stagger.errors import StorageError, counted
from stagger.progress import busy
from stagger.rundir.records import OutputRecord
from stagger.rundir.run_folder import Stage
from stagger.status.look import Look
from stagger.storage import Entry
from stagger.storage.storage import join
from stagger.task.upload_notes import abort_left_uploads
from stagger.terminal import logger

#: What has happened to a lost output.
MISSING, RESIZED, CHANGED = "missing", "of another size", "of another content"

#: Files read at once to compare their content.
READERS = 8


def remove_leftovers(stage: Stage) -> None:
    """Remove hidden files and unfinished uploads of killed attempts. Call it only while no rank of the stage runs."""
    folder = stage.folder
    try:
        for path in stage.record.outputs[stage.name]:
            folder.storage.remove_leftovers(path, folder.tag)
        if count := abort_left_uploads(folder):
            logger.info(f"{stage.name}: aborted {counted(count, 'unfinished upload')} of tasks that were killed")
        if stage.spec.blocks is not None:
            keys, users = stage.spec.blocks.host_options.get("keys"), stage.record.spec.users_of(stage.name)
            clear_registry(folder.storage, folder.path, keys, has_users=bool(users))
    except StorageError as error:
        logger.warning(f"{stage.name}: cannot remove the leftovers of killed tasks: {error}")


@dataclass(frozen=True)
class Lost:
    """A committed output that is lost: the rank that wrote it, and what happened to the file."""

    rank: int
    how: str


def lost_outputs(look: Look, *, checksums: bool = False) -> dict[str, Lost]:
    """Committed outputs that are missing or have another size now: path -> Lost. Costs one listing per folder.

    With `checksums`, also those with another content: reads each file, unless its store's ETag shows the checksum.
    """
    with look.stage.folder.blaming():
        outputs = [(record["rank"], output) for record in look.completions for output in record["outputs"]]
        parents = {output["path"].rpartition("/")[0] for _, output in outputs}
    there: dict[str, Entry] = {}
    for parent in parents:
        there |= {join(parent, entry.name): entry for entry in look.stage.folder.storage.list(parent)}
    with look.stage.folder.blaming():
        lost = {output["path"]: Lost(rank, how) for rank, output in outputs if (how := _damage(output, there))}
        kept = [(rank, output) for rank, output in outputs if output["path"] not in lost] if checksums else []
        return lost | {output["path"]: Lost(rank, CHANGED) for rank, output in _changed(look, kept, there)}


def _damage(output: OutputRecord, there: Mapping[str, Entry]) -> str:
    """What a listing shows of an output; empty if it is there, with its size."""
    entry = there.get(output["path"])
    if entry is None:
        return MISSING
    return RESIZED if entry.size != output["bytes"] else ""


def _changed(
    look: Look, outputs: Sequence[tuple[int, OutputRecord]], there: Mapping[str, Entry]
) -> list[tuple[int, OutputRecord]]:
    """Those of the (rank, output) whose content has another checksum than recorded."""
    if not outputs:
        return []
    from stagger.storage.content import is_intact

    storage = look.stage.folder.storage
    total = sum(output["bytes"] for _, output in outputs)
    read = files = 0

    def check(one: tuple[int, OutputRecord]) -> bool:
        return is_intact(storage, one[1]["path"], there[one[1]["path"]], one[1]["digest"])

    def so_far() -> str:
        part = f"{files:,} of {counted(len(outputs), 'file')}, {decimal(read)} of {decimal(total)}"
        return f"{look.stage.name}: comparing the content of outputs with their checksums, {part}"

    changed = []
    with busy(so_far), ThreadPoolExecutor(READERS) as threads:
        for one, intact in zip(outputs, threads.map(check, outputs), strict=True):
            files, read = files + 1, read + one[1]["bytes"]
            changed += [] if intact else [one]
    return changed
