"""Makes done ranks of a run undone, so that they can run again, without letting an attempt of before commit them.

Before a rank's completion record is removed, the rank's next commit is claimed in the name of the coming launch
(stagger/task/commit.py). An attempt of an earlier launch that wakes now finds a later claim, and changes nothing. The
claim lists the rank's outputs: the new attempt replaces them, and removes those that it does not write again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stagger.errors import counted
from stagger.progress import busy
from stagger.rundir.commit_claims import claim_path, last_turns
from stagger.rundir.progress_pages import remove_progress
from stagger.rundir.records import CommitClaim, Completion
from stagger.rundir.stage_folder import StageFolder, attempt_name, encode
from stagger.status.look import Look

#: Ranks handled at once: on an object store each needs three requests.
THREADS = 32


def undone(look: Look, ranks: set[int]) -> Look:
    """Make those of `ranks` undone that are done. Call it under the run's lock. Returns the new look."""
    ranks = ranks & look.done
    if not ranks:
        return look
    folder, launch = look.stage.folder, len(look.launches) + 1
    with busy(f"{look.stage.name}: making {counted(len(ranks), 'rank')} undone"):
        records = folder.completions(ranks)
        turns = last_turns(folder, ranks)
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda record: _undo(folder, record, turns.get(record["rank"], 0), launch), records))
    folder.forget(ranks)
    return replace(look, done=look.done - ranks)


def _undo(folder: StageFolder, record: Completion, turn: int, launch: int) -> None:
    """Fence the rank, and remove its records. `turn` is that of its last claim."""
    fence(folder, record["rank"], turn, launch, [output["path"] for output in record["outputs"]])


def fence(folder: StageFolder, rank: int, turn: int, launch: int, files: Iterable[str]) -> int:
    """Claim the rank's next commit for `launch`, then remove its records. Returns the turn of the claim.

    `turn` is that of the rank's last claim; `files` are its outputs.
    """
    claim = encode(_claim(folder, rank, launch, files))
    turn += 1
    while not folder.storage.create(claim_path(folder, rank, turn), claim):
        turn += 1
    remove_progress(folder, rank)
    folder.storage.remove(folder.completion(rank))
    return turn


def note_cleared(folder: StageFolder, rank: int, turn: int, launch: int) -> None:
    """Note in the claim of `fence` that the rank has no outputs any more: an attempt that wakes takes back its own."""
    claim: CommitClaim = {**_claim(folder, rank, launch, ()), "cleared": True}
    folder.storage.write(claim_path(folder, rank, turn), encode(claim))


def _claim(folder: StageFolder, rank: int, launch: int, files: Iterable[str]) -> CommitClaim:
    return {
        "attempt": attempt_name(launch, 0),
        "job": "",
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "time": time.time(),
        "files": [{"path": path, "pending": "", "version": ""} for path in sorted(files)],
        "record": {"path": folder.completion(rank), "pending": "", "version": ""},
    }
