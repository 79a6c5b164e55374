"""The handle of a run: what `stagger status`, `logs`, `retry` and `cancel` do, from Python."""

from __future__ import annotations

import contextlib
import html
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import index
from signal import Signals
from typing import Any

import orjson

from stagger.api.run_status import RunStatus
from stagger.errors import Interrupted, StaggerError, one_line
from stagger.launch import background
from stagger.launch.cancel import cancel, check_ranks
from stagger.launch.follow import is_held, wait_for_end
from stagger.launch.retry import retry
from stagger.launch.verify import note_differences
from stagger.pipeline import Document
from stagger.ranks import parse_ranks
from stagger.rundir.launch_records import SlurmLaunch, read_launches
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.status.look import done_ranks
from stagger.status.rank_log import log_path, output_without_log
from stagger.status.stage_status import status_of
from stagger.storage.storage import absolute

#: Ranks as a script writes them: 3, [3, 17], range(40, 53), or the text "3,17,40-52".
Ranks = int | str | Iterable[int]


@dataclass(frozen=True, repr=False)
class Run:
    """The handle of a run that was launched, from Python or by the command line.

    It holds the path of the run directory and nothing else: each method reads the run's records, and asks Slurm where
    it must. So a handle can be pickled, and used by several threads or processes, and `Run.open` makes another one.
    Jobs go on without it. All methods raise StaggerError when the run directory is gone.
    """

    run_dir: str
    storage_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    @classmethod
    def open(
        cls,
        run_dir: str | os.PathLike[str],
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Run:
        """The handle of the run in `run_dir`, whoever launched it. Raises StaggerError when there is none.

        `storage_options` are needed only for a run on remote storage that the environment gives no access to.
        """
        run = cls(os.fspath(run_dir), storage_options or {})
        run._open()
        return run

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", absolute(self.run_dir))

    def __repr__(self) -> str:
        return f"Run.open({self.run_dir!r})"

    def _repr_html_(self) -> str:
        """The status as a table, for notebooks."""
        try:
            return self.status()._repr_html_()
        except (StaggerError, OSError) as error:
            return f"<p>{html.escape(f'{self!r}: {one_line(str(error))}')}</p>"

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages. Each comes after those it depends on."""
        return tuple(stage.name for stage in self._open()[1].spec.stages)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of all Slurm jobs of the run so far, the oldest first in each stage: arrays and end jobs, also those
        of retries and later stages. Reads records only.
        """
        folder, record = self._open()
        launches = (launch for stage in folder.stages(record) for launch in read_launches(stage.folder))
        return tuple(
            job.job_id
            for launch in launches
            if isinstance(launch, SlurmLaunch)
            for job in launch.jobs
            if job.job_id is not None
        )

    @property
    def failed_ranks(self) -> dict[str, list[int]]:
        """Stage -> its failed ranks; stages without one are missing."""
        return {stage.name: list(stage.failed_ranks) for stage in self.status().stages if stage.failed_ranks}

    def status(self, *, verify: bool = False, checksum: bool = False) -> RunStatus:
        """The state of the run now. Where Slurm does not answer, or is not here, it comes from the records, and `notes`
        says so.

        Args:
            verify: also compare the outputs of done ranks with their records.
            checksum: the same, and compare their content with the recorded checksums.
        """
        folder, record = self._open()
        looks, stages = status_of(folder, record)
        if verify or checksum:
            note_differences(record, looks, stages, checksums=checksum)
        return RunStatus.of(folder.path, stages)

    def done(self) -> bool:
        """Whether nothing of the run is queued, running or about to start, whether or not it succeeded."""
        folder, record = self._open()
        return not self.status().active and not is_held(folder, record)

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait until the run has ended, all of its stages included, and return its status.

        It does what end jobs could not do or may not, and runs local stages that wait for Slurm stages. After Ctrl-C
        the jobs keep running.

        Args:
            timeout: seconds after which to give up; None waits as long as it takes.

        Raises:
            RunFailed: ranks failed, were cancelled, or were stopped before they were done.
            TimeoutError: the run has not ended after `timeout` seconds. Its jobs keep running.
        """
        folder, record = self._open()
        with scripted(record.spec.cwd):
            ended = wait_for_end(folder, record, timeout)
        ended.raise_if_failed()
        return RunStatus.of(folder.path, ended.stages)

    def logs(self, rank: int, *, stage: str | None = None, attempt: str | None = None) -> str:
        """The log of a rank's latest attempt; of a rank without a log, what its job printed.

        Args:
            rank: the rank.
            stage: its stage, if the run has several.
            attempt: an earlier attempt: `1`, or `1r2` after 2 requeues.

        Raises:
            StaggerError: there is no such rank, stage or attempt, or the rank has not begun.
        """
        folder, record = self._open()
        one = _stage_of_ranks(folder, record, stage)
        check_ranks(one.spec, chosen_ranks(rank))
        path = log_path(one.folder, rank, attempt)
        data = output_without_log(one.folder, rank) if path is None else folder.storage.read(path)
        return data.decode(errors="backslashreplace")

    def outputs(self, stage: str | None = None) -> list[str]:
        """The paths of the output files that the done ranks have recorded, by rank.

        Args:
            stage: the outputs of this stage; by default those of the stages on which no other depends.
        """
        folder, record = self._open()
        read = {name for one in record.spec.stages for name in one.depends}
        specs = record.spec.chosen(stage)
        chosen = [one for one in specs if stage is not None or one.name not in read]
        return [path for one in chosen for path in _outputs(folder.stage(record, one.name))]

    def head(self, count: int = 3, *, stage: str | None = None, removed: bool = False) -> list[Document]:
        """The first documents of the output, as `stagger head` shows them.

        Args:
            count: the number of documents.
            stage: the output of this stage; by default that of the last.
            removed: what the steps removed, where `removed` kept it, in place of the output.

        Raises:
            StaggerError: there are none.
        """
        from stagger.launch.head import of_outputs

        folder, record = self._open()
        name = record.spec.only(stage or record.spec.stages[-1].name).name
        return list(itertools.islice(of_outputs(folder.stage(record, name), removed=removed), count))

    def retry(
        self,
        ranks: Ranks | None = None,
        *,
        stage: str | None = None,
        failed_only: bool = False,
        again: bool = False,
        lost: bool = False,
        checksum: bool = False,
        set: Mapping[str, Any] | None = None,  # noqa: A002  # Named like the option of `stagger retry`.
        memory_factor: float = 1.0,
        time_factor: float = 1.0,
        wait: bool = False,
    ) -> Run:
        """Rerun the ranks that are neither done nor active: failed, cancelled or never launched.

        Args:
            ranks: only these: 3, [3, 17], range(40, 53) or "3,17,40-52".
            stage: only this stage.
            failed_only: only failed ranks, not those cancelled or never launched.
            again: also ranks that are done: those of `ranks`, or all. Replaces their outputs.
            lost: also ranks that are done, but whose outputs are missing or have another size.
            checksum: with `lost`, also ranks whose outputs have another content.
            set: settings that change from now on: {"executor.mem_per_cpu_gb": 8}.
            memory_factor: factor by which the jobs of this retry get more memory.
            time_factor: factor by which they get more time.
            wait: return when the run has ended. Otherwise local ranks run in a process of their own.

        Returns:
            This handle.

        Raises:
            StaggerError: the request is wrong, and nothing was launched.
            RunFailed: with `wait`, ranks failed.
        """
        folder, record = self._open()
        chosen = None if ranks is None else chosen_ranks(ranks)
        one = stage if chosen is None else _stage_of_ranks(folder, record, stage).name
        changes = [f"{key}={orjson.dumps(value).decode()}" for key, value in (set or {}).items()]
        given: dict[str, Any] = {
            "stage": one,
            "failed_only": failed_only,
            "again": again,
            "lost": lost,
            "checksums": checksum,
            "changes": changes,
            "memory_factor": memory_factor,
            "time_factor": time_factor,
        }
        with scripted(record.spec.cwd):
            if wait or all(spec.executor.type == "slurm" for spec in record.spec.chosen(one)):
                launched = retry(folder, record, **given, ranks=chosen, wait=wait)
            else:
                background.start(folder, record, again={**given, "ranks": None if chosen is None else sorted(chosen)})
        if wait:
            launched.raise_if_failed()
        return self

    def cancel(self, ranks: Ranks | None = None, *, stage: str | None = None) -> list[str]:
        """Cancel the queued and running jobs of the run, of a stage, or of some ranks. Done ranks stay done.

        Returns:
            One sentence per job or process that was stopped; none if nothing was queued or running.

        Raises:
            StaggerError: there is no such stage or rank, or Slurm refuses.
        """
        folder, record = self._open()
        chosen = None if ranks is None else chosen_ranks(ranks)
        one = stage if chosen is None else _stage_of_ranks(folder, record, stage).name
        return cancel(folder, record, one, chosen)

    def _open(self) -> tuple[RunFolder, RunRecord]:
        options = {protocol: dict(values) for protocol, values in self.storage_options.items()}
        return RunFolder.open(self.run_dir, options)


def _stage_of_ranks(folder: RunFolder, record: RunRecord, name: str | None) -> Stage:
    """The stage whose ranks a call names. Raises StaggerError when there are several and `name` is None."""
    return folder.stage(record, record.spec.only(name, "stage=").name)


def _outputs(stage: Stage) -> list[str]:
    records = stage.folder.completions(done_ranks(stage))
    records.sort(key=lambda record: record["rank"])
    return [output["path"] for record in records for output in record["outputs"] if "removed_by" not in output]


def chosen_ranks(ranks: Ranks) -> set[int]:
    """A set of ranks. Raises StaggerError for anything that is none."""
    try:
        given = parse_ranks(ranks) if isinstance(ranks, str) else ranks if isinstance(ranks, Iterable) else [ranks]
        found = {-1 if isinstance(rank, bool) else index(rank) for rank in given}
    except (ValueError, TypeError):
        found = set()
    if not found or min(found) < 0:
        raise StaggerError(f'These are no ranks: {ranks!r}. Pass 3, [3, 17], range(40, 53) or "3,17,40-52".')
    return found


@contextlib.contextmanager
def scripted(entered: str) -> Iterator[None]:
    """Let a script get KeyboardInterrupt after Ctrl-C, SystemExit after another signal, and go on in its own folder.

    `entered` is the folder that the run was launched from, which launching enters.
    """
    before = current_folder()
    try:
        yield
    except StaggerError as error:
        raise error from None  # Its sentence gives the reason. The errors behind it would fill the screen of a script.
    except Interrupted as interrupted:
        stopped = KeyboardInterrupt if interrupted.signal == Signals.SIGINT else SystemExit(interrupted.exit_status)
        raise stopped from None
    finally:
        if before is not None and entered != before and current_folder() == entered:
            os.chdir(before)


def current_folder() -> str | None:
    """The folder that this process is in; None if it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
