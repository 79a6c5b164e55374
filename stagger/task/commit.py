"""The commit of a rank: its outputs become visible, then its record, by one attempt alone.

An attempt can hang at any moment and go on an hour later, when a later attempt has long committed the same rank.
Looking before each rename is not enough: an attempt may hang right after its look. So a commit takes these steps:

1. Everything is finished first: the outputs, and the record under its temporary name.
2. The attempt claims the commit: it creates the rank's next file commits/<rank>.<turn>.json, as only one attempt can.
   The claim lists the temporary files and the unfinished uploads that the commit needs.
3. It revokes the earlier claims: it removes their temporary files and aborts their uploads. No rename of an earlier
   attempt succeeds after that. (Nothing can revoke a PUT. It carries a condition instead, which fails once another
   attempt has written the object.)
4. If the rank has a completion record by now, an earlier attempt has committed it whole, and this one changes nothing.
5. The outputs, then the record, get their final names. Before each, the attempt looks for a later claim.

A superseded attempt leaves final names alone, as those of a later attempt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stagger.rundir.commit_claims import claim_path, decode_claim
from stagger.rundir.stage_folder import StageFolder, attempt_order, encode
from stagger.storage import Output
from stagger.storage.storage import is_local
from stagger.task import Committed, Superseded
from stagger.task.attempt_log import log

if TYPE_CHECKING:
    from stagger.rundir.records import ClaimedFile, CommitClaim

#: Seconds between two looks at a remote run directory. There a look costs a request; on a file system, a system call.
LOOK_S = 5.0


class RankCommit:
    """The commits of one attempt: one with `commit: rank`, one for each shard with `commit: shard`.

    `repeated` tells that earlier attempts may have committed something.
    """

    def __init__(self, folder: StageFolder, rank: int, attempt: str, job: str, *, repeated: bool) -> None:
        self._folder = folder
        self._storage = folder.storage
        self._rank = rank
        self._attempt = attempt
        self._job = job
        self._repeated = repeated
        self._turn = 0
        self._stale: list[ClaimedFile] = []
        self._written: dict[str, str] = {}
        self._looked = 0.0

    def publish(self, files: Sequence[Output], path: str, record: bytes, keep: set[str] | None = None) -> None:
        """Make finished `files` visible, then write `record` to `path`.

        The last commit gives `keep`, the paths of all outputs of the rank: all other files of earlier attempts are
        removed. Raises Superseded, and Committed when an earlier attempt has committed the rank. When a file cannot be
        made visible, those before it become invisible again.
        """
        last = self._storage.output(path, f"{self._folder.tag}-{self._attempt}", record=True)
        try:
            last.write(record)
            last.finish()
            self._claim(files, last)
            self._show(files, last, keep)
        except BaseException:
            last.abort()
            raise

    def _claim(self, files: Sequence[Output], record: Output) -> None:
        claim: CommitClaim = {
            "attempt": self._attempt,
            "job": self._job,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "time": time.time(),
            "files": [claimed(file) for file in files],
            "record": claimed(record),
        }
        if self._turn:
            self._storage.write(claim_path(self._folder, self._rank, self._turn), encode(claim))
            if any(file["pending"] for file in (*claim["files"], claim["record"])):
                self._look()  # A later claim may have come before this write: it cannot revoke these files.
            return
        earlier: list[CommitClaim] = []
        while not self._take_turn(encode(claim)):
            if (taken := self._taken(self._turn)) not in (None, claim):
                earlier.append(taken)
        self._looked = now()
        self._revoke(earlier)

    def _take_turn(self, claim: bytes) -> bool:
        """Claim the next turn. False if another attempt has it."""
        self._turn += 1
        if not self._storage.create(claim_path(self._folder, self._rank, self._turn), claim):
            return False
        if not self._repeated:
            return True
        # Somebody may have removed a damaged claim. Later ones are still there, and the last one counts.
        return self._storage.entry(claim_path(self._folder, self._rank, self._turn + 1)) is None

    def _taken(self, turn: int) -> CommitClaim | None:
        """The claim of an attempt; None if somebody has removed it. Raises Superseded if the attempt is a later one."""
        path = claim_path(self._folder, self._rank, turn)
        try:
            claim = decode_claim(self._storage.read(path), path)
        except FileNotFoundError:
            return None
        if attempt_order(claim["attempt"]) > attempt_order(self._attempt):
            raise superseded(self._attempt, claim)
        return claim

    def _revoke(self, earlier: list[CommitClaim]) -> None:
        if not earlier:
            return
        self._repeated = True
        for claim in earlier:
            for file in (*claim["files"], claim["record"]):
                if file["pending"]:
                    self._storage.revoke(file["path"], file["pending"])
            self._stale += claim["files"]
        self._stale += self._in_progress()
        if self._storage.entry(self._folder.completion(self._rank)) is not None:
            raise Committed

    def _in_progress(self) -> list[ClaimedFile]:
        """The files in the progress record, which no earlier attempt can change any more."""
        from stagger.rundir.progress_pages import outputs_in  # Imported late: few attempts come after another.

        path = self._folder.progress(self._rank)
        data = self._storage.read_many([path])[0]
        return [{"path": path, "pending": "", "version": ""} for path in outputs_in(self._folder, self._rank, data)]

    def _look(self) -> None:
        """Raise Superseded when another attempt has claimed the commit since."""
        path = claim_path(self._folder, self._rank, self._turn + 1)
        if self._storage.entry(path) is not None:
            raise superseded(self._attempt, decode_claim(self._storage.read(path), path))
        self._looked = now()

    def _look_again(self) -> None:
        if is_local(self._folder.path) or now() - self._looked > LOOK_S:
            self._look()

    def _show(self, files: Sequence[Output], record: Output, keep: set[str] | None) -> None:
        visible: list[Output] = []
        recording = False
        try:
            for file in files:
                self._look_again()
                file.commit(self._look, self._known(file.path))
                visible.append(file)
            self._storage.settle([file.path for file in files])
            if keep is not None:
                self._remove_stale(keep)
            self._look_again()
            recording = True
            record.commit(self._look, self._known(record.path))
        except Superseded:
            later = self._claimed_later()
            self._withdraw([file for file in visible if file.path not in later])
            raise
        except BaseException:
            if not recording:  # A record whose request failed may still appear, and no file of it must be missing then.
                self._withdraw(visible)
            raise
        self._written[record.path] = record.version
        self._storage.settle([record.path])

    def _known(self, path: str) -> str | None:
        """The version that `path` holds now; None if that is not known."""
        return self._written.get(path, None if self._repeated else "")

    def _remove_stale(self, keep: set[str]) -> None:
        for file in self._stale:
            if file["path"] not in keep:
                self._storage.remove(file["path"], file["version"])

    def _claimed_later(self) -> set[str]:
        """The paths of all files in claims after this attempt's. Their attempts own these paths now."""
        paths: set[str] = set()
        turn = self._turn + 1
        while (data := self._storage.read_many([path := claim_path(self._folder, self._rank, turn)])[0]) is not None:
            paths |= {file["path"] for file in decode_claim(data, path)["files"]}
            turn += 1
        return paths

    def _withdraw(self, files: list[Output]) -> None:
        """Remove files of this attempt that are visible: the rank has failed, and nobody may take them for data."""
        for file in files:
            try:
                file.withdraw()
            except Exception as error:
                log(f"{file.path} belongs to no finished rank, and cannot be removed: {error}", "ERROR")


def claimed(file: Output) -> ClaimedFile:
    return {"path": file.path, "pending": file.pending, "version": file.version}


def superseded(attempt: str, later: CommitClaim) -> Superseded:
    return Superseded(
        f"Attempt {later['attempt']} of this rank (process {later['pid']} on {later['host']}) has claimed the commit:"
        f" attempt {attempt} was taken for dead, and commits nothing any more."
    )


def now() -> float:
    """Seconds that pass also while this machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
