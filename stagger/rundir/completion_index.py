"""completions.index: the table of a stage's completion records, kept for the next look.

It spares reading 100,000 files, or 100,000 requests, for what they held at the last look. It proves nothing: a rank is
done only by its completion record, and a row counts only while the listing shows the record unchanged. Whoever reads
many records writes it anew. It may be removed at any time, and is ignored when it is damaged or somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import sys
from array import array
from collections.abc import Mapping
from typing import Any, cast

import orjson
import zstandard

from stagger.errors import StaggerError
from stagger.ranks import pad
from stagger.rundir.completion_table import MALFORMED, Column, CompletionTable, OtherSteps, OutputFolders, StepColumns
from stagger.rundir.records import Batch, Completion
from stagger.rundir.stage_folder import StageFolder, check_record, collection_paused, damaged
from stagger.storage.ownership import foreign, open_to_others
from stagger.storage.storage import is_local, join

#: Fewer unread records than this are read without an index.
INDEXED = 500

#: The index is written anew when more than one in STALE of its rows was missing.
STALE = 10

#: Changes when the columns or their meaning do. Numbers are as they are in memory, which not all machines share.
FORMAT = f"3 {sys.byteorder}"


def read_table(folder: StageFolder, ranks: set[int], *, keep: bool) -> CompletionTable:
    """The table of the completion records of `ranks`, ascending by rank. Those removed meanwhile are left out.

    Reads each record once in a process, as they are immutable. `keep`: keep the records, too, for who needs them whole.
    Raises StaggerError when one is damaged.
    """
    table = cast("CompletionTable | None", folder.table) or CompletionTable()
    table.keep(ranks)
    unread = ranks.difference(table.rank)
    many = len(unread - folder.in_memory()) >= INDEXED
    with collection_paused():
        listed: dict[str, int] = {}
        if many and not len(table) and not keep and (found := _load(folder)) is not None:
            listed, table = folder.storage.identities(join(folder.path, "completions")), found
            _drop_changed(table, listed)
            table.keep(ranks)
            unread.difference_update(table.rank)
            folder.unkept.update(table.rank)
        elif many and not is_local(folder.path):
            listed = folder.storage.identities(join(folder.path, "completions"))
        before, few = len(table), len(unread) < INDEXED
        in_memory = folder.in_memory()
        for some in folder.reading(unread, keep=keep or few):
            if not is_local(folder.path):
                known = [0 if rank in in_memory else listed.get(f"{pad(rank)}.json", 0) for rank in some.ranks]
                some = some._replace(identities=known)
            _append(folder, table, some)
            del some  # Before the next are read, which then take its memory, that the processor has in its cache.
        table.keep(ranks)
        if many and any(table.identity) and (len(table) - before) * STALE > len(table):
            _save(folder, table)
    folder.table = table
    return table


def _append(folder: StageFolder, table: CompletionTable, batch: Batch) -> None:
    """Add records to a table. Raises StaggerError naming the file of one that is damaged."""
    try:
        table.append(*batch)
    except OtherSteps as error:
        raise damaged(folder.completion(error.rank), str(error)) from error
    except MALFORMED:
        for rank, record in zip(batch.ranks, batch.records, strict=True):
            check_record(record, Completion, folder.completion(rank))
        raise


def _drop_changed(table: CompletionTable, identities: Mapping[str, int]) -> None:
    """Drop the rows of a table that was kept whose records are not the same any more, or were not recognisable."""
    now = [identities.get(f"{pad(rank)}.json") for rank in table.rank]
    if now != list(table.identity):
        table.take([row for row, (one, other) in enumerate(zip(now, table.identity, strict=True)) if one == other])


def index_path(folder: StageFolder) -> str:
    return join(folder.path, "completions.index")


def _load(folder: StageFolder) -> CompletionTable | None:
    """The table that was kept; None if there is none that can be used."""
    path = index_path(folder)
    try:
        if is_local(path) and not _is_ours(folder, path):
            return None
        return _decode(folder.storage.read(path))
    except (OSError, StaggerError, ValueError, KeyError, TypeError, zstandard.ZstdError):
        return None


def _save(folder: StageFolder, table: CompletionTable) -> None:
    """Keep the rows whose records can be recognised, if this user may: a status of another user's run keeps nothing."""
    with contextlib.suppress(OSError, StaggerError):
        if is_local(folder.path) and not _is_ours(folder, folder.path):
            return
        folder.storage.write(index_path(folder), _encode(table))


def _is_ours(folder: StageFolder, path: str) -> bool:
    """Whether a local file or folder is this user's, and nobody else may write to it but the group that shares the run.

    Root's own commands read the files of users, and write none of them.
    """
    info, run = os.lstat(path), os.stat(folder.path)
    group = run.st_gid if folder.storage.shared else None
    if group is None and info.st_uid != os.geteuid():
        return False
    return not foreign(info, group) and open_to_others(info, group) is None


def _encode(table: CompletionTable) -> bytes:
    """One line of JSON, with the number of rows in place of each column of numbers, and then these columns."""
    content = {**vars(table), "format": FORMAT, "folder_sets": list(map(list, table.folder_sets))}
    head = orjson.dumps({**content, "steps": list(map(vars, table.steps))}, default=len)
    numbers = [memoryview(column) for column in table.columns() if isinstance(column, array)]
    parts = [memoryview(head), memoryview(b"\n"), *numbers]
    writer = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(sum(part.nbytes for part in parts))
    return b"".join([*map(writer.compress, parts), writer.flush()])


def _decode(data: bytes) -> CompletionTable:
    """Raises ValueError, KeyError, TypeError or ZstdError if the data are not those of a table."""
    text = zstandard.ZstdDecompressor().decompress(data)
    view = memoryview(text)[: (end := text.index(b"\n"))]
    content: dict[str, Any] = orjson.loads(view)
    if content.pop("format") != FORMAT:
        raise ValueError("another format")
    steps = [StepColumns(**{**step, **_no_numbers(StepColumns(""))}) for step in content.pop("steps")]
    sets = [OutputFolders(tuple(kept), tuple(removed)) for kept, removed in content.pop("folder_sets")]
    content |= {**_no_numbers(CompletionTable()), "folder_sets": {one: number for number, one in enumerate(sets)}}
    table = CompletionTable(**content, steps=steps)
    rows, view = len(table.job), memoryview(text)[end + 1 :]
    for column in table.columns():
        if isinstance(column, array):
            column.frombytes(view[: rows * column.itemsize])
            view = view[rows * column.itemsize :]
    if view or set(map(len, table.columns())) != {rows}:
        raise ValueError("columns of different lengths")
    return table


def _no_numbers(columns: CompletionTable | StepColumns) -> dict[str, Column]:
    """The columns of numbers of an empty table."""
    return {name: column for name, column in vars(columns).items() if isinstance(column, array)}
