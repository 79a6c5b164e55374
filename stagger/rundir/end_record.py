"""What the end of a stage's launch did: launches/<n>/end.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from stagger.rundir.stage_folder import StageFolder, encode, read_fields
from stagger.storage.storage import join


@dataclass(frozen=True)
class EndRecord:
    """The end of one launch: by its end job, or by a waiting process in its place.

    by: who ended it, such as `end job 12 on n3`.
    started: when it began first, in seconds since the epoch; `ended` is None until it has ended.
    said: what it did, or waits for, one sentence each.
    left: what it had to launch, but may not.
    error: why it failed; empty if it did not.
    """

    by: str
    started: float
    ended: float | None = None
    said: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    error: str = ""


def end_path(folder: StageFolder, launch: int) -> str:
    return join(folder.launch(launch), "end.json")


def read_end(folder: StageFolder, launch: int) -> EndRecord | None:
    """The record of a launch's end; None if there is none. Raises StaggerError when it is damaged."""
    known = read_fields(folder.storage, end_path(folder, launch), EndRecord)
    if known is None:
        return None
    for name in ("said", "left"):
        known[name] = tuple(known.get(name, ()))
    return EndRecord(**known)


def has_ended(folder: StageFolder, launch: int) -> bool:
    """Whether the end of a launch is on record: its end job has launched all that it launches."""
    record = read_end(folder, launch)
    return record is not None and record.ended is not None


def write_end(folder: StageFolder, launch: int, record: EndRecord) -> None:
    folder.storage.write(end_path(folder, launch), encode(asdict(record)))
