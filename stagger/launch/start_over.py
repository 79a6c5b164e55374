"""`stagger launch --fresh`: undoes what earlier launches of a run have recorded, so that it starts from nothing.

Each rank that was ever launched is fenced as `again` does it: its next commit is claimed in the name of the coming
launch before its records and outputs are removed, and the earlier claims are revoked. That also holds for ranks that
the new division does not have, which no later attempt would fence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from stagger.errors import StaggerError, counted
from stagger.launch.again import THREADS, fence, note_cleared
from stagger.launch.leftovers import remove_leftovers
from stagger.progress import busy
from stagger.ranks import MOST
from stagger.rundir.commit_claims import claims_of, last_turns
from stagger.rundir.launch_records import LaunchRecord, read_launches, write_launch
from stagger.rundir.progress_pages import outputs_in
from stagger.rundir.records import CommitClaim
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage, open_storage
from stagger.status.look import Look, look_at


@dataclass(frozen=True)
class PastStage:
    """A stage as earlier launches have left it.

    outputs: rank -> the paths that its records name, for each rank that was launched or has records.
    claims: rank -> its claims, for ranks that are not done or have several.
    """

    stage: Stage
    launches: list[LaunchRecord]
    done: set[int]
    outputs: dict[int, set[str]]
    claims: dict[int, list[CommitClaim]]

    @classmethod
    def read(cls, stage: Stage) -> PastStage:
        """Read the records of a stage."""
        folder, launches = stage.folder, read_launches(stage.folder)
        done = folder.done()
        outputs: dict[int, set[str]] = {rank: set() for one in launches if not one.undone for rank in one.rank_list}
        with folder.blaming():
            for record in folder.completions(done):
                outputs.setdefault(record["rank"], set()).update(output["path"] for output in record["outputs"])
        claims = claims_of(folder, range(MOST), done)
        progress = folder.storage.read_many([folder.progress(rank) for rank in claims])
        for (rank, mine), data in zip(claims.items(), progress, strict=True):
            named = {file["path"] for claim in mine for file in claim["files"]}
            outputs.setdefault(rank, set()).update(named | outputs_in(folder, rank, data))
        return cls(stage, launches, done, outputs, claims)

    @property
    def files(self) -> set[str]:
        """The paths of all outputs that the records name."""
        return set().union(*self.outputs.values())

    def undo(self) -> None:
        """Fence each rank, and remove its records and outputs. Earlier launches count no more."""
        folder, coming = self.stage.folder, len(self.launches) + 1
        with busy(f"{self.stage.name}: undoing {counted(len(self.outputs), 'rank')}"):
            turns = last_turns(folder, range(MOST))
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(partial(self._undo_rank, turns, coming), self.outputs))
        for path in (folder.stats(), folder.report()):
            folder.storage.remove(path)
        for launch in self.launches:
            if not launch.undone:
                write_launch(folder, replace(launch, undone=True))
        remove_leftovers(self.stage)

    def _undo_rank(self, turns: Mapping[int, int], coming: int, rank: int) -> None:
        folder, files, claims = self.stage.folder, self.outputs[rank], self.claims.get(rank, [])
        turn = fence(folder, rank, turns.get(rank, 0), coming, files)
        for claim in claims:
            for file in (*claim["files"], claim["record"]):
                if file["pending"]:
                    folder.storage.revoke(file["path"], file["pending"])
        for path in files:
            folder.storage.remove(path)
        note_cleared(folder, rank, turn, coming)


def past_of(run: RunFolder, before: RunRecord | None, now: RunRecord) -> list[PastStage]:
    """What earlier launches of a run have left, in the folders of its stages `before`, by its run.json, and `now`."""
    stages = [
        stage
        for record in (before, now)
        if record is not None
        for stage in RunFolder(open_storage(record.spec), run.path).stages(record)
    ]
    folders = {stage.folder.path: stage for stage in reversed(stages)}  # What is in both is as it was before.
    with busy("reading the records of earlier launches"):
        return [PastStage.read(stage) for stage in stages if folders[stage.folder.path] is stage]


def refuse_if_running(past: Sequence[PastStage]) -> None:
    """Raise StaggerError when ranks or end jobs of earlier launches are queued or running."""
    runs = {id(one.stage.run): [other.stage for other in past if other.stage.run is one.stage.run] for one in past}
    for look in itertools.chain.from_iterable(look_at(stages).values() for stages in runs.values()):
        path = look.stage.run.path
        if look.activity.ranks or look.activity.ending:
            raise StaggerError(
                f"{path} has queued or running jobs ({', '.join(look.activity.holders) or 'an end job'}), and --fresh"
                f" would undo what they do: stop them first with: stagger cancel {path}"
            )


def undo_all(past: Iterable[PastStage]) -> None:
    """Undo the stages, the last one first: a stage never lies there without its input."""
    for one in reversed(list(past)):
        with one.stage.run.changing(one.stage.record):
            one.undo()


def as_new(look: Look) -> Look:
    """The look at a stage after `undo_all`."""
    return replace(look, launches=[replace(launch, undone=True) for launch in look.launches], done=set())


def described(past: Sequence[PastStage]) -> str:
    """What `undo_all` removes, as a sentence."""
    parts = [
        f"{one.stage.name}: {len(one.done):,} of {counted(len(one.outputs), 'rank')} done,"
        f" {counted(len(one.files), 'output file')}" + (f", such as {min(one.files)}" if one.files else "")
        for one in past
        if one.outputs
    ]
    return f"--fresh undoes all ranks of earlier launches, and removes their outputs ({'; '.join(parts)})"
