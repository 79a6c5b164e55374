"""Makes done ranks of a run undone, so that they can run again, without letting an attempt of before commit them.

Before a rank's completion record is removed, the rank's next commit is claimed in the name of the coming launch
(stagger/task/commit.py). An attempt of an earlier launch that wakes now finds a later claim, and changes nothing. The
claim lists the rank's outputs: the new attempt replaces them, and removes those that it does not write again.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stagger.errors import counted
from stagger.progress import busy
from stagger.rundir.commit_claims import CommitClaim, claim_path, last_turns
from stagger.rundir.stage_folder import Completion, StageFolder, attempt_name, encode
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
    """Claim the rank's next commit for `launch`, then remove its records. `turn` is that of its last claim."""
    rank = record["rank"]
    path = folder.completion(rank)
    claim: CommitClaim = {
        "attempt": attempt_name(launch, 0),
        "job": "",
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "time": time.time(),
        "files": [{"path": output["path"], "pending": "", "version": ""} for output in record["outputs"]],
        "record": {"path": path, "pending": "", "version": ""},
    }
    while not folder.storage.create(claim_path(folder, rank, turn + 1), encode(claim)):
        turn += 1
    folder.storage.remove(folder.progress(rank))
    folder.storage.remove(path)
