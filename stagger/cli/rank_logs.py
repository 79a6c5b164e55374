"""`stagger logs`: find and print the logs of ranks."""

from __future__ import annotations

import codecs
import io
import sys
import time
from typing import Any

from stagger.cli.tracebacks import folded
from stagger.errors import StaggerError, one_line
from stagger.launch.cancel import check_ranks
from stagger.ranks import format_ranks
from stagger.rundir.run_folder import RunFolder, RunRecord, Stage
from stagger.rundir.stage_folder import StageFolder
from stagger.status.failed import Failed, grouped
from stagger.status.look import Look, glance_at
from stagger.status.rank_log import job_output, latest_attempts, log_path, output_without_log, tail
from stagger.status.stage_status import places
from stagger.storage.storage import is_local
from stagger.terminal import logger, say, say_lines

#: Most sentences shown for one cause of failures, when they differ.
SENTENCES = 50

#: Seconds between two reads of a followed log.
FOLLOW_S = 0.5

#: Seconds between two checks, at Slurm or at the local processes, whether the followed rank is still active.
ASK_S = 5.0


def show_logs(
    folder: RunFolder,
    record: RunRecord,
    *,
    stage: str | None,
    rank: int | None,
    attempt: str | None,
    failed: bool,
    follow: bool,
) -> None:
    """Print one rank's log, or the failed ranks' errors, or the path of each rank's latest log.

    `attempt` selects an earlier attempt of `rank`. Raises StaggerError when the rank, attempt or log does not exist.
    """
    if attempt is not None and rank is None:
        raise StaggerError("--attempt needs a rank; say which with --rank.")
    if follow and rank is None:
        raise StaggerError("--follow needs a rank; say which with --rank.")
    if rank is not None:
        only = record.spec.only(stage)
        check_ranks(only, {rank})
        show_rank(folder.stage(record, only.name), rank, attempt, follow)
        return
    for one in record.spec.chosen(stage):
        if failed:
            show_failed(folder.stage(record, one.name))
        else:
            list_logs(folder.stage(record, one.name).folder)
        say_where(folder.stage(record, one.name))


def show_rank(stage: Stage, rank: int, wanted: str | None, follow: bool) -> None:
    while (path := log_path(stage.folder, rank, wanted)) is None and follow:
        time.sleep(FOLLOW_S)
    if path is not None:
        print_growing(stage, path, follow)
        return
    say(f"rank {rank} has no log; the output of its job:")
    say_lines(tail(output_without_log(stage.folder, rank)))


def print_growing(stage: Stage, path: str, follow: bool) -> None:
    """Print a log; with `follow` and a local log, also print new lines until the attempt has ended.

    The file itself keeps what the steps printed, such as colours.
    """
    storage = stage.folder.storage
    data = storage.read(path)
    shown = Shown()
    shown.write(data)
    position = len(data)
    growing = follow and is_local(path)
    asked = time.monotonic()
    while growing:
        # Checked before the read, so that the last lines are not missed.
        growing = not ended(stage.folder, path)
        if growing and time.monotonic() - asked > ASK_S:  # A killed attempt leaves no record.
            asked = time.monotonic()
            growing = int(path.split("/")[-2]) in glance_at([stage])[stage.name].activity.ranks
        if growing:
            time.sleep(FOLLOW_S)
        more = storage.read_range(path, position, position + 2**24)
        shown.write(more)
        position += len(more)


def ended(folder: StageFolder, log: str) -> bool:
    """Whether the attempt that writes this log has left a completion or failure record."""
    rank, attempt = int(log.split("/")[-2]), log.split("/")[-1].removesuffix(".log")
    return (
        folder.storage.entry(folder.completion(rank)) is not None
        or folder.storage.entry(folder.failure(rank, attempt)) is not None
    )


def show_failed(stage: Stage) -> None:
    """Print why ranks failed, once for each cause: the error, and of the first rank the traceback, the user's code
    first, and the end of its log; without a failure record, the end of its log and of its job's output.
    """
    look = glance_at([stage])[stage.name]
    attempts = latest_attempts(stage.folder)
    if not look.failed:
        say(f"{stage.name}: no rank has failed")
    for group in grouped(look.failed):
        say(f"rank {group.first.rank}: {group.error}" if len(group.ranks) == 1 else str(group))
        others = {one.sentence: one.rank for one in reversed(group.members) if one.sentence != group.first.sentence}
        for sentence, rank in sorted(others.items(), key=lambda item: item[1])[:SENTENCES]:
            say(f"    rank {rank}: {sentence}")
        for end in filter(None, ends_of(stage.folder, look, group.first, attempts.get(group.first.rank))):
            say_lines(end, indent="    ")
        say()
    for note in look.jobs.notes:
        logger.warning(note)


def ends_of(folder: StageFolder, look: Look, one: Failed, attempt: str | None) -> list[str]:
    """What a failed rank left behind: its folded traceback, and the ends of its log and of its job's output."""
    log = folder.storage.read(folder.log(one.rank, attempt)) if attempt is not None else b""
    if one.failure is None:
        return [tail(log), tail(job_output(look.launches, one.rank))]
    lines, trace = log.decode(errors="backslashreplace"), one.failure.get("traceback", "")
    before = lines.partition("Traceback (most recent call last):")[0] if trace else lines
    return [folded(trace), tail(before.encode())]


def say_where(stage: Stage) -> None:
    """Log where the results and the report of a stage are, as far as they exist."""
    name = f" of {stage.name}" if len(stage.record.spec.stages) > 1 else ""
    for folder in stage.record.outputs.get(stage.name, []) if stage.folder.done() else []:
        logger.info(f"The result{name} is in {folder}")
    if report := places(stage.folder, ended=True).get("report"):
        logger.info(f"The report{name} is {report}")


def logs_document(folder: RunFolder, record: RunRecord, *, stage: str | None, failed: bool) -> dict[str, Any]:
    """The document that `stagger logs --json` prints: the path of each rank's latest log, and with `failed` why ranks
    failed: `ranks`, their `count`, the `error`, and the folded `traceback` of the first one that left one.
    """
    stages = []
    for one in record.spec.chosen(stage):
        mine = folder.stage(record, one.name)
        attempts = latest_attempts(mine.folder)
        found: dict[str, Any] = {
            "name": one.name,
            "logs": {str(rank): mine.folder.log(rank, attempt) for rank, attempt in sorted(attempts.items())},
            "output_folders": record.outputs.get(one.name, []) if mine.folder.done() else [],
            "places": places(mine.folder, ended=bool(attempts)),
        }
        if failed:
            look = glance_at([mine])[one.name]
            found["failed"] = [
                {
                    "ranks": format_ranks(group.ranks),
                    "count": len(group.ranks),
                    "error": group.error,
                    "traceback": folded((group.first.failure or {}).get("traceback", "")),
                }
                for group in grouped(look.failed)
            ]
        stages.append(found)
    return {"run_dir": folder.path, "stages": stages}


def list_logs(folder: StageFolder) -> None:
    """Print the path of each rank's latest log."""
    for rank, attempt in sorted(latest_attempts(folder).items()):
        say(f"rank {rank}: {folder.log(rank, attempt)}")


class Shown:
    """Prints a log piece by piece, as text that no terminal obeys. A lone carriage return, as progress bars print it,
    counts as a line end.
    """

    def __init__(self) -> None:
        text = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._decoder = io.IncrementalNewlineDecoder(text, translate=True)

    def write(self, data: bytes) -> None:
        sys.stdout.write(one_line(self._decoder.decode(data), keep="\n\t"))
        sys.stdout.flush()
