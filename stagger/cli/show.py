"""The text of `stagger launch --dry-run`, `launch`, `retry` and `status`."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.filesize import decimal

from stagger.cli.chart import bars
from stagger.errors import agreeing, counted, plural
from stagger.launch.launched import Launched
from stagger.ranks import format_ranks, named_ranks
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.status.efficiency import sentences
from stagger.status.look import Look
from stagger.status.stage_status import StageStatus, status_of
from stagger.terminal import duration, say, say_lines

#: Seconds between two refreshes of `stagger status --watch`; Slurm's manual advises against polling faster than needed.
WATCH_S = 5.0

#: Largest share of the time that `--watch` spends on refreshing: for a large run that takes a while, and loads Slurm.
WATCH_SHARE = 0.1

#: Escape sequence that clears a terminal.
CLEAR = "\x1b[H\x1b[2J"

#: Most output folders listed after a launch, and most reasons why ranks of a stage wait or failed.
SHOWN = 5

#: Most columns of a chart of starts.
CHART_COLUMNS = 60

#: The states of a rank, in the order shown.
STATES = ("done", "running", "sleeping", "requeued", "pending", "failed")


def status_document(run_dir: str, stages: list[StageStatus]) -> dict[str, Any]:
    return {"run_dir": run_dir, "stages": [vars(stage) for stage in stages], "notes": notes(stages)}


def notes(stages: list[StageStatus]) -> list[str]:
    """What could not be found out about a run, each sentence once."""
    return list(dict.fromkeys(note for stage in stages for note in stage.notes))


def plan(document: dict[str, Any]) -> None:
    """Print a dry run: each stage, its ranks and start, and every job script."""
    say(f"run_dir      {document['run_dir']}")
    say(f"fingerprint  {document['fingerprint']}")
    origins(document["origins"])
    for stage in document["stages"]:
        say()
        say(f"stage {stage['name']} ({stage['executor']})")
        if stage["shards"] is None:
            say(f"  input    planned when {', '.join(stage['depends'])} {agreeing(len(stage['depends']), 'is')} done")
        else:
            say(f"  input    {counted(stage['shards'], 'shard')}, {decimal(stage['bytes'])}")
        say(f"  ranks    {stage['ranks']:,} of {stage['tasks']:,} to run")
        start = stage["start"]
        spread = f"over {start['window_s']} s ({start['policy']})" if start["window_s"] else "at once"
        say(f"  start    {start['summary'] or spread}")
        for number, array in enumerate(stage["arrays"]):
            throttle = f", at most {array['throttle']} at once" if array["throttle"] else ""
            say(f"  array {number}  {counted(array['jobs'], 'job')}{throttle}")
            say()
            say_lines(array["script"], indent="    ")
            say()
        if stage["end_script"]:
            say("  end job, when all arrays have ended")
            say()
            say_lines(stage["end_script"], indent="    ")
            say()


def origins(origins: dict[str, str]) -> None:
    """Print where each setting was set that the pipeline file itself does not set."""
    found = {name: origin for name, origin in origins.items() if origin.startswith(("profile ", "--"))}
    for number, (name, origin) in enumerate(found.items()):
        say(f"{'' if number else 'settings':<12} {name:<{max(map(len, found))}}  {origin}")


def launched(launched: Launched) -> None:
    """Print the status after a launch or retry, then the next command or the output folders."""
    status(launched.run_dir, launched.stages)
    if launched.submitted:
        say(f"Follow it with: stagger status {launched.run_dir} --watch")
    elif not launched.failed_ranks:
        folders = list(dict.fromkeys(folder for stage in launched.stages for folder in stage.output_folders))
        for folder in folders[:SHOWN]:
            say(f"The result is in {folder}")
        if len(folders) > SHOWN:
            say(f"... and in {counted(len(folders) - SHOWN, 'more folder')}")
        say(f"The report is in {launched.run_dir}")


def status(run_dir: str, stages: list[StageStatus]) -> None:
    """Print a few lines per stage: ranks by state, progress, starts, failures."""
    say(run_dir)
    width = max(len(stage.name) for stage in stages)
    for stage in stages:
        states = [f"{getattr(stage, name):,} {name}{aside(stage, name)}" for name in STATES if getattr(stage, name)]
        ranks = counted(stage.tasks, "rank")
        say(f"  {stage.name:<{width}}  {ranks}: {', '.join(states)}")
        work = (
            f"{counted(stage.records_in, 'record')} in, {stage.records_out:,} out, {decimal(stage.bytes_out)} written"
        )
        if stage.records_per_s is not None and stage.eta_s is not None:
            rate = f"{stage.records_per_s:,.0f} records/s"
            if stage.bytes_per_s:
                rate += f", {decimal(round(stage.bytes_per_s))}/s read"
            work += f"; {rate}, {duration(stage.eta_s)} to go"
        say(f"  {'':<{width}}  {work}")
        if stage.starts["planned"]["span_s"]:
            peaks = [(stage.starts[key]["peak_1s"], stage.starts[key]["peak_100ms"]) for key in ("measured", "planned")]
            measured, planned = (f"{second:,}/s, {tenth:,} in 100 ms" for second, tenth in peaks)
            say(f"  {'':<{width}}  peak starts: {measured} (planned: {planned})")
            for line in start_chart(stage.starts):
                say(f"  {'':<{width}}  {line}")
        if stage.bad_records:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in stage.bad_records.items())
            say(f"  {'':<{width}}  bad records skipped: {kinds}")
        if stage.left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in stage.left_out.items())
            say(f"  {'':<{width}}  records left out: {reasons}")
        if stage.counts:
            counts = ", ".join(f"{count:,} {name}" for name, count in stage.counts.items())
            say(f"  {'':<{width}}  counted: {counts}")
        if stage.retried:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in stage.retried.items())
            say(f"  {'':<{width}}  requests retried: {kinds}; {duration(stage.retry_waited_s)} spent waiting in total")
        if stage.slowest:
            ranks = ", ".join(f"{rank} ({seconds:,.0f} s)" for rank, seconds in stage.slowest)
            say(f"  {'':<{width}}  slowest: {ranks}")
        for line in sentences(stage.efficiency):
            say(f"  {'':<{width}}  {line}")
        for line in stage.schema_differences:
            say(f"  {'':<{width}}  files differ: {line}")
        if stage.failed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in stage.reasons.items())
            say(f"  {'':<{width}}  failed: {format_ranks(stage.failed_ranks)} ({reasons})")
            for group in stage.errors[:SHOWN]:
                say(f"  {'':<{width}}    {group['count']:,} x {group['error']}")
        for why in stage.waiting[:SHOWN]:
            say(f"  {'':<{width}}  waiting: {why['ranks']} ({why['reason']}: {why['message']})")
        if stage.end:
            say(f"  {'':<{width}}  end: {stage.end['message']}")
        if stage.avoided:
            nodes = f"{plural(len(stage.avoided), 'node')} {', '.join(stage.avoided)}"
            say(f"  {'':<{width}}  the jobs avoid {nodes}, on which several ranks failed")
        if stage.lost:
            files = counted(stage.lost["files"], "output file")
            say(f"  {'':<{width}}  lost: {files} of {named_ranks(stage.lost['ranks'])}, such as {stage.lost['first']}")
            say(f"  {'':<{width}}    make them again with: stagger retry {run_dir} --lost")
        if stage.strays:
            say(f"  {'':<{width}}  {stage.strays['message']}")
    for note in notes(stages):
        say(note)


def aside(stage: StageStatus, state: str) -> str:
    """The note after the number of ranks in a state."""
    kinds = (("cancelled", stage.cancelled), ("unknown", stage.unknown)) if state == "pending" else ()
    parts = [f"{count:,} {kind}" for kind, count in kinds if count]
    return f" ({', '.join(parts)})" if parts else ""


def is_ending(stage: StageStatus) -> bool:
    """Whether the end job of a stage, which may launch more ranks, is queued or running."""
    return stage.end.get("state") in ("waiting", "running")


def start_chart(starts: dict[str, Any]) -> list[str]:
    """Lines that chart the jobs' starts over time, measured and planned (by their delays alone), on one scale."""
    seconds = {name: starts[name]["per_second"] for name in ("measured", "planned")}
    width = max(1, -(-max(map(len, seconds.values())) // CHART_COLUMNS))
    sums = {
        name: [sum(counts[i : i + width]) for i in range(0, len(counts), width)] for name, counts in seconds.items()
    }
    top = max(map(max, sums.values()))
    return [f"{name:<8} {bars(counts, 1, top)[0]}" for name, counts in sums.items()] + [
        f"{'':<8} {width} s per column, highest column: {counted(top, 'start')}"
    ]


def watch_status(folder: RunFolder, record: RunRecord, silent: bool) -> tuple[dict[str, Look], list[StageStatus]]:
    """Print the status every WATCH_S seconds or more, until no rank and no end job is queued or running.

    Returns the last look at each stage, and the last status.

    On a terminal each output replaces the one before. `silent` prints nothing.
    """
    clear = CLEAR if sys.stdout.isatty() and not silent else ""
    while True:
        asked = time.monotonic()
        looks, stages = status_of(folder, record)
        print(clear, end="", flush=True)
        if not any(stage.running or stage.sleeping or stage.active or is_ending(stage) for stage in stages):
            return looks, stages
        if not silent:
            status(folder.path, stages)
            sys.stdout.flush()
        time.sleep(max(WATCH_S, (time.monotonic() - asked) / WATCH_SHARE))
