"""The notes of crews (`stagger.task.job_crew`): which ranks of a job run now, and which have failed in it.

A note lies beside the job's output, which is on a shared file system also where the run directory is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from stagger.ranks import format_ranks, parse_ranks
from stagger.rundir.stage_folder import damaged, decode, encode
from stagger.storage.local_files import LocalFiles


@dataclass
class CrewNote:
    """The ranks that a crew runs now, and those that have failed. Of all crews of a job, if it has several nodes."""

    running: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)


def note_path(folder: str, job: str, node: int) -> str:
    """The path of the note of the crew on a node of a job, counted from 0. `job` is an element's id: `12_3`."""
    return os.path.join(folder, f"{job}.{node}.running.json")


def encode_note(running: Iterable[int], failed: Iterable[int]) -> bytes:
    return encode({"running": format_ranks(running), "failed": format_ranks(failed)})


def read_notes(folder: str, job: str, nodes: int) -> CrewNote:
    """The notes of the crews of a job with up to `nodes` nodes. A crew that has not written its note yet runs nothing.

    Raises StaggerError when a note is damaged.
    """
    whole = CrewNote()
    for node in range(nodes):
        path = note_path(folder, job, node)
        if (data := LocalFiles().read_many([path])[0]) is None:
            continue
        note = decode(data, path, "running", "failed")
        try:
            whole.running.update(parse_ranks(str(note["running"])))
            whole.failed.update(parse_ranks(str(note["failed"])))
        except ValueError as error:
            raise damaged(path, str(error)) from error
    return whole
