"""Files in the output folders of a run that have names of its outputs, but are nobody's: refused, or removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stagger.errors import StaggerError, counted
from stagger.launch.plans import paths
from stagger.progress import busy
from stagger.rundir.commit_claims import claims_of
from stagger.rundir.output_names import OutputNames, Places
from stagger.rundir.plan_file import read_all
from stagger.rundir.progress_pages import outputs_in
from stagger.rundir.run_folder import RunRecord, Stage
from stagger.rundir.stage_folder import StageFolder
from stagger.status.look import Look
from stagger.storage import MTIME, Entry
from stagger.storage.storage import Storage, expand_variables, is_local, join
from stagger.terminal import logger

#: Files removed at once.
THREADS = 32


@dataclass(frozen=True)
class Foreign:
    """The files in an output folder of a stage that have names of its outputs, and belong to no rank of the run."""

    stage: str
    folder: str
    files: list[Entry]

    def __str__(self) -> str:
        """A phrase such as `2 files in /data/out, such as 00002.jsonl`."""
        count = len(self.files)
        return f"{counted(count, 'file')} in {self.folder}, such as {min(self.files).name}"


def find_foreign(
    storage: Storage, names: Mapping[str, Sequence[OutputNames]], own: Sequence[Callable[[], Iterable[str]]]
) -> list[Foreign]:
    """The files with names of outputs that are none of a run. Costs a listing of each output folder.

    Args:
        storage: the storage of the run.
        names: stage -> the names of the files that it writes.
        own: each gives paths of files that belong to the run; called only while other files are left.
    """
    places = Places()
    with busy("looking into the output folders"):
        left = _candidates(storage, names, places)
        for more in own:
            for path in more() if left else ():
                left.pop(places.file(path), None)
    found: dict[tuple[str, str], list[Entry]] = {}
    for stage, folder, entry in left.values():
        found.setdefault((stage, folder), []).append(entry)
    return [Foreign(stage, folder, files) for (stage, folder), files in found.items()]


def _candidates(
    storage: Storage, names: Mapping[str, Sequence[OutputNames]], places: Places
) -> dict[str, tuple[str, str, Entry]]:
    """The files with names of outputs: place -> stage, folder and entry."""
    found: dict[str, tuple[str, str, Entry]] = {}
    for stage, writers in names.items():
        for one in writers:
            for entry in _listed(storage, one):
                place = places.file(join(one.folder, entry.name))
                # Behind a link to another folder nothing is an output: it may be anything.
                if place == f"{places.folder(one.folder)}/{entry.name}" and one.fits(entry.name):
                    found.setdefault(place, (stage, one.folder, entry))
    return found


def _listed(storage: Storage, names: OutputNames) -> Iterable[Entry]:
    """The files where these names may lie."""
    if names.recursive:
        return storage.walk(names.folder)
    if is_local(names.folder):  # Names alone: on Lustre, each file's size costs a request.
        return (Entry(name, -1) for name in storage.named(names.folder, ""))
    return storage.list(names.folder)


def foreign_beside(record: RunRecord, looks: Mapping[str, Look], only: Collection[str] | None = None) -> list[Foreign]:
    """The files with names of outputs that are none of a run, by its records. Imports no step.

    `only` names the stages whose folders are looked into.
    """
    stages = [look.stage for look in looks.values()]
    names = {name: mine for name, mine in record.names.items() if only is None or name in only}

    def done(stage: Stage) -> set[int]:
        return looks[stage.name].done

    own: list[Callable[[], Iterable[str]]] = [
        lambda: recorded([stage for stage in stages if stage.name in names], done),
        lambda: recorded([stage for stage in stages if stage.name not in names], done),
        lambda: unfinished(stages, done),
        lambda: planned_inputs(record, stages),
    ]
    return find_foreign(stages[0].run.storage, names, own)


def planned_inputs(record: RunRecord, stages: Iterable[Stage]) -> Iterator[str]:
    """The paths of the shards in the plans of stages whose reader has a parameter `path`, as all of stagger's have."""
    for stage in stages:
        path = stage.spec.pipeline[0].params.get("path")
        if stage.name in record.fingerprints and isinstance(path, str):
            with contextlib.suppress(StaggerError):  # A variable is not set here: other folders count.
                path = str(expand_variables(path))
            folder = join(record.spec.cwd, os.path.expanduser(path.removeprefix("file://")))
            for rank in read_all(stage.folder.storage, stage.folder.plan(record.fingerprints[stage.name])):
                yield from (join(folder, shard.name) for shard in rank.shards)


def recorded(stages: Iterable[Stage], done: Callable[[Stage], set[int]]) -> Iterator[str]:
    """The paths in the completion records of the ranks of `stages` that are `done`."""
    for stage in stages:
        with stage.folder.blaming():
            yield from paths(stage.folder.completions(done(stage)))


def unfinished(stages: Iterable[Stage], done: Callable[[Stage], set[int]]) -> Iterator[str]:
    """The paths that attempts of `stages` have committed or were about to, though no completion record lists them.

    Costs a listing of the claims of each stage, and a read of each of those that count.
    """
    for stage in stages:
        yield from claimed(stage.folder, range(stage.spec.tasks), done(stage))


def claimed(folder: StageFolder, ranks: range, done: set[int]) -> Iterator[str]:
    """The paths in claims and progress records of those of `ranks` that are not done or have several claims."""
    claims = claims_of(folder, ranks, done)
    progress = folder.storage.read_many([folder.progress(rank) for rank in claims])
    for (rank, mine), data in zip(claims.items(), progress, strict=True):
        yield from outputs_in(folder, rank, data)
        yield from (file["path"] for claim in mine for file in claim["files"])


def refuse_foreign(found: Sequence[Foreign]) -> None:
    """Raise StaggerError, naming them, if there are files with names of outputs that belong to nobody."""
    if not found:
        return
    what = "; ".join(f"{one.stage}: {one}" for one in found)
    them = "them" if sum(len(one.files) for one in found) > 1 else "it"
    raise StaggerError(
        f"{what}: not written by this run, but named as its outputs. The result would be a mixture: choose another"
        f" folder or filename, move {them} away, or launch with --overwrite (in Python: overwrite=True), which removes"
        f" {them}."
    )


def warn_of_foreign(record: RunRecord, looks: Mapping[str, Look], only: Collection[str] | None = None) -> list[str]:
    """Warn about files that have come since the launch, which refused or removed those of before. Returns sentences.

    `only` is as for `foreign_beside`.
    """
    found: list[Foreign] = []
    with contextlib.suppress(
        StaggerError, OSError
    ):  # A damaged record is named where it matters: by the rank's next attempt.
        found = foreign_beside(record, looks, only)
    said = [f"{one}: not written by this run, but named as its outputs" for one in found]
    for one, line in zip(found, said, strict=True):
        logger.warning(f"{one.stage}: {line}; to have such files removed, use: stagger launch FILE --overwrite")
    return said


def remove_foreign(storage: Storage, found: Sequence[Foreign]) -> None:
    """Remove the files."""
    files = [(join(one.folder, entry.name), entry.version) for one in found for entry in one.files]

    def remove(file: tuple[str, str]) -> None:
        path, version = file
        storage.remove(path, "" if is_local(path) or version.startswith(MTIME) else version)

    with busy(f"removing {counted(len(files), 'file')}"), ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(remove, files))
