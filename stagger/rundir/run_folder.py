"""A run on disk: run.json, the folders of its stages, and the lock that prevents concurrent launches."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from pydantic import ValidationError

from stagger import __version__
from stagger.errors import StaggerError
from stagger.progress import LINE_S
from stagger.rundir.lock import Holder
from stagger.rundir.stage_folder import StageFolder, decode, encode
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.local_files import make_folder
from stagger.storage.storage import UNREACHABLE_S, Storage, absolute, is_local, join

SCHEMA = 1


@dataclass(frozen=True)
class RunRecord:
    """run.json. `spec` is that of the latest launch; `created` is in seconds since the epoch.

    The other fields map stage names: `outputs` to the stage's output folders; `fingerprints` and `inputs`, once the
    stage is planned, to its fingerprint and input.
    """

    spec: RunSpec
    fingerprints: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, StageInput] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    created: float = 0.0


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
    return Storage(spec.storage_options, retry_s=spec.retry_seconds, unreachable_s=unreachable_s, tell=told())


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
        self._stages: dict[str, StageFolder] = {}

    @classmethod
    def open(
        cls, path: str, options: dict[str, dict[str, Any]] | None = None, *, patient: bool = False
    ) -> tuple[RunFolder, RunRecord]:
        """Open the existing run at `path`. Raises StaggerError when there is none.

        `options` are the storage options for reading run.json, which contains the run's own. `patient` is for jobs
        without a user at a terminal: they retry even if the storage is unreachable.
        """
        path = absolute(path)
        unreachable_s = None if patient else UNREACHABLE_S
        folder = cls(Storage(options, unreachable_s=unreachable_s, tell=told()), path)
        record = folder.load()
        if record is None:
            raise StaggerError(f"There is no run in {path}: it has no run.json. Give the run_dir of a pipeline file.")
        return cls(open_storage(record.spec, unreachable_s), path), record

    def stage(self, record: RunRecord, name: str) -> Stage:
        """One stage of the run, with the settings in `record`. An only stage has the run directory as its folder."""
        if name not in self._stages:
            path = self.path if len(record.spec.stages) == 1 else join(self.path, name)
            self._stages[name] = StageFolder(self.storage, path)
        return Stage(self, record, record.spec.stage(name), self._stages[name])

    def stages(self, record: RunRecord) -> list[Stage]:
        """All stages of the run. Each comes after those it depends on."""
        return [self.stage(record, stage.name) for stage in record.spec.stages]

    def create(self) -> None:
        """Create the run directory, private to its owner. Does nothing on an object store, which has no folders."""
        if is_local(self.path):
            make_folder(self.path, 0o700)

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
        try:
            spec = RunSpec.model_validate(record["spec"])
            return RunRecord(
                spec.model_copy(update={"run_dir": self.path}),
                record["fingerprints"],
                {name: StageInput(**numbers) for name, numbers in record["inputs"].items()},
                record["outputs"],
                record["created"],
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise StaggerError(f"{path} is damaged ({error}); restore or remove it.") from error

    def save(self, record: RunRecord) -> None:
        content = {
            "schema": SCHEMA,
            "stagger": __version__,
            "created": record.created,
            "fingerprint": run_fingerprint(record.fingerprints),
            "fingerprints": record.fingerprints,
            "inputs": {name: vars(numbers) for name, numbers in record.inputs.items()},
            "outputs": record.outputs,
            "spec": record.spec.model_dump(mode="json"),
        }
        self.storage.write(join(self.path, "run.json"), encode(content))

    @contextlib.contextmanager
    def lock(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock of the run, to launch it or run it locally.

        Raises StaggerError, naming the holder, when another process still holds it after `wait_s` seconds.
        """
        path = join(self.path, "lock")
        deadline = time.monotonic() + wait_s
        mine = encode(vars(Holder.this_process()))
        while not self.storage.create(path, mine):
            holder = self.holder()
            if holder is None:
                continue  # Released between the two calls.
            if not holder.is_dead():
                if time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                raise StaggerError(
                    f"{self.path} is in use by {holder}. Wait for it, or stop it with: stagger cancel {self.path}"
                    + ("" if holder.host == socket.gethostname() else f" (if it has ended there: remove {path})")
                )
            self._take_over(holder, path, mine)
        try:
            self._check_exclusive(path, mine)
            yield
        finally:
            self.storage.remove(path)

    def _check_exclusive(self, path: str, mine: bytes) -> None:
        """Raise StaggerError when the store replaces the lock, which exists, by a request to create it."""
        if not is_local(path) and self.storage.create(path, mine + b"\n"):
            raise StaggerError(
                f"{self.path}: the store ignores conditional writes (If-None-Match), so nothing would keep two launches"
                " of the run, or two attempts of a rank, apart. Put run_dir on a shared file system or on another store"
                " (docs/storage.md); input and output may stay here."
            )

    def _take_over(self, dead: Holder, path: str, mine: bytes) -> None:
        """Remove the lock of a dead process.

        Only one process at a time may: a second one could remove the lock that the first has taken since.
        """
        guard = f"{path}.takeover"
        if not self.storage.create(guard, mine):
            time.sleep(0.2)
            if self.holder() == dead:
                raise StaggerError(
                    f"Another process is taking over {path} from {dead}; try again. If this persists, remove {guard}."
                )
            return
        try:
            if self.holder() == dead:
                self.storage.remove(path)
        finally:
            self.storage.remove(guard)

    def holder(self) -> Holder | None:
        """The process that holds the lock; None if it is free. Raises StaggerError when the lock file is damaged."""
        path = join(self.path, "lock")
        try:
            return Holder(**decode(self.storage.read(path), path))
        except FileNotFoundError:
            return None
        except TypeError as error:
            raise StaggerError(f"{path} is damaged ({error}); remove it if nothing runs.") from error


def run_fingerprint(fingerprints: dict[str, str]) -> str:
    """The run's fingerprint: those of its stages, joined by `-`."""
    return "-".join(fingerprints.values())


@dataclass(frozen=True)
class StageInput:
    """The numbers in a stage's plan that determine its requests, summed over all ranks.

    `remote_shards` and `remote_outputs` count files on remote storage; each costs one request.
    """

    bytes: int = 0
    remote_shards: int = 0
    remote_outputs: int = 0
