"""A run on disk: run.json and the folders of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypedDict

from pydantic import ValidationError

from stagger import __version__
from stagger.errors import StaggerError
from stagger.progress import LINE_S
from stagger.rundir.access import changing, create_run
from stagger.rundir.lock import Lock
from stagger.rundir.output_names import OutputNames
from stagger.rundir.stage_folder import StageFolder, check_record, damaged, decode, encode
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.late_files import appears
from stagger.storage.storage import UNREACHABLE_S, Storage, absolute, is_local, join
from stagger.terminal import logger

SCHEMA = 1


class NoRun(StaggerError):
    """There is no run in a folder."""


@dataclass(frozen=True)
class RunRecord:
    """run.json. `spec` is that of the latest launch; `created` is in seconds since the epoch.

    The other fields map stage names: `outputs` to the stage's output folders; `names` to the names of the files that
    its writers write, as far as they say; `fingerprints` and `inputs`, once the stage is planned, to its fingerprint
    and input; `pickles`, in a run of Python objects, to its pickled steps.
    """

    spec: RunSpec
    fingerprints: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, StageInput] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, list[OutputNames]] = field(default_factory=dict)
    created: float = 0.0
    pickles: dict[str, Pickle] = field(default_factory=dict)

    def unplanned(self, name: str) -> RunRecord:
        """A copy of the record in which a stage is not planned yet: it is when it starts."""
        fingerprints = {stage: one for stage, one in self.fingerprints.items() if stage != name}
        inputs = {stage: one for stage, one in self.inputs.items() if stage != name}
        stage = self.spec.stage(name)
        if stage.sizing == "decided":
            stage = stage.model_copy(update={"tasks": 1, "sizing": "undecided"})
        return replace(self, spec=self.spec.with_stages([stage]), fingerprints=fingerprints, inputs=inputs)

    @property
    def is_sized(self) -> bool:
        """Whether the number of ranks of every stage is decided."""
        return all(stage.sizing != "undecided" for stage in self.spec.stages)


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its settings, its folder, and its run."""

    run: RunFolder
    record: RunRecord
    spec: StageSpec
    folder: StageFolder

    @property
    def name(self) -> str:
        return self.spec.name


def open_storage(spec: RunSpec, unreachable_s: float | None = UNREACHABLE_S) -> Storage:
    """Open the storage of a run. Requests to an unreachable endpoint fail after `unreachable_s` seconds.

    With None they are retried as long as any other request.
    """
    return Storage(
        spec.storage_options,
        retry_s=spec.retry_seconds,
        unreachable_s=unreachable_s,
        tell=told(),
        shared=spec.shared is not None,
    )


def told() -> Callable[[str], None]:
    """A callback that logs warnings, at most one every LINE_S seconds."""
    said = time.monotonic()

    def tell(message: str) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_S:
            said = time.monotonic()
            logger.warning(message)

    return tell


class RunFolder:
    """The run directory of a run."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage = storage
        self.path = path
        self.lock = Lock(storage, path, join(path, "lock"))
        self._stages: dict[str, StageFolder] = {}

    @classmethod
    def open(
        cls, path: str, options: dict[str, dict[str, Any]] | None = None, *, patient: bool = False
    ) -> tuple[RunFolder, RunRecord]:
        """Open the existing run at `path`. Raises NoRun when there is none.

        `options` are the storage options for reading run.json, which contains the run's own. `patient` is for jobs
        without a user at a terminal: they retry even if the storage is unreachable, and wait for a run.json that is
        not visible yet.
        """
        path = absolute(path)
        unreachable_s = None if patient else UNREACHABLE_S
        folder = cls(Storage(options, unreachable_s=unreachable_s, tell=told()), path)
        record = folder.load()
        if record is None and patient and is_local(path) and appears(join(path, "run.json")):
            record = folder.load()
        if record is None:
            if not is_local(path):  # Raises StaggerError for a missing bucket.
                next(iter(folder.storage.walk(path)), None)
            from stagger.rundir.which_run import no_run

            raise NoRun(no_run(path))
        return cls(open_storage(record.spec, unreachable_s), path), record

    def stage(self, record: RunRecord, name: str) -> Stage:
        """One stage of the run, with the settings in `record`. An only stage has the run directory as its folder."""
        path = self.path if len(record.spec.stages) == 1 else join(self.path, name)
        if path not in self._stages:
            self._stages[path] = StageFolder(self.storage, path)
        return Stage(self, record, record.spec.stage(name), self._stages[path])

    def stages(self, record: RunRecord) -> list[Stage]:
        """All stages of the run. Each comes after those it depends on."""
        return [self.stage(record, stage.name) for stage in record.spec.stages]

    def changing(self, record: RunRecord) -> AbstractContextManager[None]:
        """Check who else could have changed the run, and create its files for those it is shared with: `access`."""
        shared = record.spec.shared is not None
        return changing(self.path, [stage.folder.path for stage in self.stages(record)], shared)

    def create(self, spec: RunSpec) -> None:
        """Create the run directory, private to its owner, or to its group if the run is shared."""
        create_run(self.path, spec.shared is not None)

    def load(self) -> RunRecord | None:
        """Read run.json; None if there is none. Raises StaggerError when it is damaged or has another schema."""
        path = join(self.path, "run.json")
        try:
            data = self.storage.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        record = decode(data, path)
        if record.get("schema") != SCHEMA:
            raise StaggerError(
                f"{path} has schema {record.get('schema')}, but this stagger reads schema {SCHEMA}; use the version of"
                f" stagger that wrote it: {record.get('stagger', 'unknown')}."
            )
        check_record(record, RunFile, path)
        try:
            spec = RunSpec.model_validate(record["spec"])
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, ("spec", *first["loc"])))
            raise damaged(path, f"{place}: {first['msg']}") from error
        check_stages(spec, record, path)
        return RunRecord(
            spec.model_copy(update={"run_dir": self.path}),
            record["fingerprints"],
            {name: StageInput(**numbers) for name, numbers in record["inputs"].items()},
            record["outputs"],
            {name: [OutputNames(**one) for one in mine] for name, mine in record["names"].items()},
            record["created"],
            {name: Pickle(**pickle) for name, pickle in record["pickles"].items()},
        )

    def refreshed(self, record: RunRecord) -> RunRecord:
        """The record; read again if it leaves the number of ranks of a stage open, which its launch decides."""
        return record if record.is_sized else self.load() or record

    def save(self, record: RunRecord) -> None:
        content = {
            "schema": SCHEMA,
            "stagger": __version__,
            "created": record.created,
            "fingerprint": run_fingerprint(record.fingerprints),
            "fingerprints": record.fingerprints,
            "inputs": {name: vars(numbers) for name, numbers in record.inputs.items()},
            "outputs": record.outputs,
            "names": {name: list(map(asdict, mine)) for name, mine in record.names.items()},
            "pickles": {name: vars(pickle) for name, pickle in record.pickles.items()},
            "spec": record.spec.model_dump(mode="json"),
        }
        self.storage.write(join(self.path, "run.json"), encode(content))


class RunFile(TypedDict):
    """run.json, besides its schema. Each stage has its outputs; only planned stages have a fingerprint and an input."""

    spec: dict[str, Any]
    fingerprints: dict[str, str]
    inputs: dict[str, StageInput]
    outputs: dict[str, list[str]]
    names: dict[str, list[OutputNames]]
    created: float
    pickles: dict[str, Pickle]


def check_stages(spec: RunSpec, record: dict[str, Any], path: str) -> None:
    """Raise StaggerError when run.json lacks what it must hold for a stage."""
    for stage in spec.stages:
        if stage.name not in record["outputs"]:
            raise damaged(path, f"outputs has no {stage.name!r}")
        if (stage.name in record["fingerprints"]) != (stage.name in record["inputs"]):
            raise damaged(path, f"only one of fingerprints and inputs has {stage.name!r}")


def run_fingerprint(fingerprints: dict[str, str]) -> str:
    """The run's fingerprint: those of its stages, joined by `-`."""
    return "-".join(fingerprints.values())


@dataclass(frozen=True)
class Pickle:
    """The pickled steps of a stage: their path and SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class StageInput:
    """The numbers in a stage's plan that determine its requests, summed over all ranks.

    `remote_shards` and `remote_outputs` count files on remote storage; each costs one request. `times` is a hash of the
    local shards' times of modification, which are no part of the fingerprint. `step_requests` is no sum: it counts the
    requests of one process for what its steps need beside their input, such as a model.
    """

    bytes: int = 0
    remote_shards: int = 0
    remote_outputs: int = 0
    times: str = ""
    step_requests: int = 0
