"""The text of `stagger launch --dry-run`, `launch`, `retry` and `status`."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from stagger.cli.chart import bars
from stagger.errors import agreeing, counted, plural
from stagger.ranks import named_ranks, ranks_text, shortened
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.status import step_totals
from stagger.status.efficiency import sentences
from stagger.status.look import Look
from stagger.status.models_used import models_differ
from stagger.status.next_commands import next_commands
from stagger.status.stage_status import StageStatus, status_of
from stagger.terminal import duration, say, say_lines

if TYPE_CHECKING:
    from stagger.launch.launched import Launched

#: Seconds between two refreshes of `stagger status --watch`; Slurm's manual advises against polling faster than needed.
WATCH_S = 5.0

#: Largest share of the time that `--watch` spends on refreshing: for a large run that takes a while, and loads Slurm.
WATCH_SHARE = 0.1

#: Escape sequence that clears a terminal.
CLEAR = "\x1b[H\x1b[2J"

#: Most output folders listed after a launch, and most reasons why ranks of a stage wait or failed.
SHOWN = 5

#: Most output folders that are listed one by one if they lie in the same folder.
BESIDE = 3

#: Most characters of an error that the status shows.
ERROR_CHARACTERS = 120

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
        elif not stage["shards"]:
            say("  input    no shards: the first step makes or finds its own records")
        else:
            say(f"  input    {counted(stage['shards'], 'shard')}, {decimal(stage['bytes'])}")
        if stage["undecided"]:
            say(f"  ranks    {stage['undecided']}")
        else:
            say(f"  ranks    {stage['ranks']:,} of {stage['tasks']:,} to run")
        if stage["uses"]:
            say(f"  uses     {', '.join(stage['uses'])}, which {'run' if len(stage['uses']) > 1 else 'runs'} beside it")
        start = stage["start"]
        spread = f"over {start['window_s']} s ({start['policy']})" if start["window_s"] else "at once"
        say(f"  start    {start['summary'] or spread}")
        for number, array in enumerate(stage["arrays"]):
            throttle = f", at most {array['throttle']} at once" if array["throttle"] else ""
            jobs = "as it would be for one rank" if stage["undecided"] else f"{counted(array['jobs'], 'job')}{throttle}"
            say(f"  array {number}  {jobs}")
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
    """Print the status after a launch or retry, then the next command or where everything is."""
    lines(launched.run_dir, launched.stages)
    if launched.submitted:
        say(f"Follow it with: stagger status {launched.run_dir} --watch")
    else:
        where(launched.stages)


def status(run_dir: str, stages: list[StageStatus], *, watching: bool = False) -> None:
    """Print a few lines per stage, where everything is, and the commands to type next: at most a screen."""
    lines(run_dir, stages)
    where(stages)
    commands = [] if watching else next_commands(run_dir, stages)
    for number, (command, what) in enumerate(commands):
        say(f"{'' if number else 'next:':<5} {command:<{max(len(one) for one, _ in commands)}}  # {what}")


def where(stages: list[StageStatus]) -> None:
    """Print the paths of results, reports and logs, as far as they exist."""
    named = [(f" of {stage.name}" if len(stages) > 1 else "", stage) for stage in stages]
    folders = [(name, folder) for name, stage in named for folder in stage.output_folders]
    removed = [(name, folder) for name, stage in named for folder in stage.removed_folders]
    for what, found in (("The result{} is in", folders), ("What was removed{} is in", removed)):
        listed = in_parents(found)
        for name, folder in listed[:SHOWN]:
            say(f"{what.format(name)} {folder}")
        if len(listed) > SHOWN:
            say(f"... and in {counted(len(listed) - SHOWN, 'more folder')}")
    for name, stage in named:
        if "report" in stage.places:
            say(f"The report{name} is {stage.places['report']}")
    if logs := [stage.places["logs"] for stage in stages if "logs" in stage.places]:
        say(f"The logs are in {', '.join(logs)}")


def in_parents(folders: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(Stage, folder) of outputs: more than BESIDE folders of a stage that lie in one folder are shown as that.

    >>> in_parents([("", f"/out/{bucket}") for bucket in range(14)] + [("", "/other")])
    [('', '/out (14 folders)'), ('', '/other')]
    """
    beside: dict[tuple[str, str], list[str]] = {}
    for name, folder in folders:
        beside.setdefault((name, folder.rpartition("/")[0]), []).append(folder)
    found = []
    for (name, parent), mine in beside.items():
        together = [f"{parent} ({counted(len(mine), 'folder')})"] if parent and len(mine) > BESIDE else mine
        found += [(name, one) for one in together]
    return found


def lines(run_dir: str, stages: list[StageStatus]) -> None:
    """Print a few lines per stage: ranks by state, what is wrong, and progress."""
    say(run_dir)
    width = max(len(stage.name) for stage in stages)
    for stage in stages:
        said = [counts(stage), *troubles(stage), *([work(stage)] if stage.done else []), *remarks(run_dir, stage)]
        said += details(stage) if len(stages) == 1 else []
        for number, line in enumerate(said):
            say(f"  {'' if number else stage.name:<{width}}  {line}")
    for note in notes(stages):
        say(note)


def steps(stages: list[StageStatus]) -> None:
    """Print the documents that left each step, and what it dropped."""
    for stage in stages:
        width = max((len(step_totals.short_name(step)) for step in stage.steps), default=0)
        for number, step in enumerate(stage.steps, 1):
            dropped = f", dropped {step_totals.numbers(step['dropped'])}" if "dropped" in step else ""
            name = f"{step_totals.short_name(step):<{width}}"
            say(f"  {stage.name} {number}  {name}  {step['records']:>9,} out, {step['seconds']:.2f} s{dropped}")


def counts(stage: StageStatus) -> str:
    """The ranks of a stage by state."""
    if stage.undecided:
        return f"{stage.undecided}, once the stage starts"
    states = [f"{getattr(stage, name):,} {name}{aside(stage, name)}" for name in STATES if getattr(stage, name)]
    took = "" if stage.took_s is None else f" in {duration(stage.took_s)}"
    return f"{counted(stage.tasks, 'rank')}: {', '.join(states)}{took}"


def troubles(stage: StageStatus) -> list[str]:
    """Why ranks failed, why others do not start, and what the end of the stage did."""
    said = [
        f"failed: {ranks_text(group['ranks'], group['count'])}: {clipped(group['error'])}"
        for group in stage.errors[:SHOWN]
    ]
    if more := stage.errors[SHOWN:]:
        said.append(f"failed: {sum(group['count'] for group in more):,} more, for {len(more):,} other reasons")
    for why in stage.waiting[:SHOWN]:
        how = "can never start" if why["starts"] == "never" else "waiting"
        said.append(f"{how}: {ranks_text(why['ranks'], why['count'])}: {why['reason']}: {why['message']}")
    if stage.end:
        said.append(f"end: {stage.end['message']}")
    return said


def clipped(text: str) -> str:
    """The beginning of a long error; `stagger logs --failed` shows all of it."""
    return text if len(text) <= ERROR_CHARACTERS else f"{text[:ERROR_CHARACTERS]}..."


def work(stage: StageStatus) -> str:
    """The records and bytes of a stage, and their rates."""
    said = f"{counted(stage.records_in, 'record')} in, {stage.records_out:,} out, {decimal(stage.bytes_out)} written"
    if stage.records_per_s is not None and stage.eta_s is not None:
        said += f"; {stage.records_per_s:,.0f} records/s"
        if stage.bytes_per_s:
            said += f", {decimal(round(stage.bytes_per_s))}/s read"
        said += f", {duration(stage.eta_s)} to go"
    return said


def remarks(run_dir: str, stage: StageStatus) -> list[str]:
    """What is worth knowing about the outputs, the records and the nodes of a stage."""
    said = [f"files differ: {line}" for line in stage.schema_differences]
    said += (f"models differ: {line}" for line in models_differ(stage.models))
    if stage.lost:
        from stagger.launch.leftovers import CHANGED

        how = ", ".join(f"{count:,} {kind}" for kind, count in stage.lost["kinds"].items())
        more = " --checksum" if CHANGED in stage.lost["kinds"] else ""
        files, ranks = counted(stage.lost["files"], "output file"), named_ranks(shortened(stage.lost["ranks"]))
        said.append(f"lost: {files} ({how}) of {ranks}, such as {stage.lost['first']}")
        said.append(f"  make them again with: stagger retry {run_dir} --lost{more}")
    said += (f"not written by this run, although named as its outputs: {files}" for files in stage.foreign)
    if stage.strays:
        said.append(stage.strays["message"])
    if stage.published:
        said.append(stage.published)
    said += (f"waits for {one}" for one in stage.waits_for)
    if stage.replaced:
        earlier = f"{len(stage.replaced) - SHOWN:,} earlier; " if len(stage.replaced) > SHOWN else ""
        said.append(f"lost servers were replaced: {earlier}{', '.join(stage.replaced[-SHOWN:])}")
    if stage.avoided:
        nodes = f"{plural(len(stage.avoided), 'node')} {', '.join(stage.avoided)}"
        said.append(f"the jobs avoid {nodes}, on which several ranks failed")
    kinds = {
        "bad records skipped": stage.bad_records,
        "records left out": stage.left_out,
        "counted": stage.counts,
        "requests retried": stage.retried,
    }
    sums = [f"{what}: {step_totals.numbers(found)}" for what, found in kinds.items() if found]
    if stage.retried:
        sums.append(f"{duration(stage.retry_waited_s)} spent waiting in total")
    return [*said, *step_totals.lines(stage.steps), *(["; ".join(sums)] if sums else [])]


def details(stage: StageStatus) -> list[str]:
    """How the jobs started and what they used; nothing if something is wrong, to leave that on the screen."""
    if stage.errors or stage.stuck:
        return []
    said = step_totals.metric_lines(stage.steps)[:SHOWN] + step_totals.pace_lines(stage.steps)
    if stage.starts["planned"]["span_s"]:
        peaks = [(stage.starts[key]["peak_1s"], stage.starts[key]["peak_100ms"]) for key in ("measured", "planned")]
        measured, planned = (f"{second:,}/s, {tenth:,} in 100 ms" for second, tenth in peaks)
        said.append(f"peak starts: {measured} (planned: {planned})")
        said += start_chart(stage.starts)
    if stage.slowest:
        ranks = ", ".join(f"{rank} ({seconds:,.0f} s)" for rank, seconds in stage.slowest)
        said.append(f"slowest: {ranks}")
    for one in stage.models[:SHOWN]:
        how = f"engine {one['engine']}, {one['dtype']}, on {one['device']}"
        said.append(f"model: {one['model']}, {how}: {counted(one['ranks'], 'rank')}")
    return said + sentences(stage.efficiency)


def aside(stage: StageStatus, state: str) -> str:
    """The note after the number of ranks in a state."""
    if state != "pending":
        return ""
    kinds = {"can never start": stage.stuck, "cancelled": stage.cancelled, "unknown": stage.unknown}
    parts = [f"{count:,} {kind}" for kind, count in (kinds | stage.ordinary).items() if count]
    return f" ({', '.join(parts)})" if parts else ""


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


def watch_status(
    folder: RunFolder, record: RunRecord, shown: Collection[str], silent: bool
) -> tuple[dict[str, Look], list[StageStatus]]:
    """Print the status of the stages `shown` every WATCH_S seconds or more, until none of them is queued or running.

    Returns the last look at each stage, and the last status.

    On a terminal each output replaces the one before. `silent` prints nothing.
    """
    clear = CLEAR if sys.stdout.isatty() and not silent else ""
    while True:
        asked = time.monotonic()
        looks, stages = status_of(folder, record)
        stages = [stage for stage in stages if stage.name in shown]
        print(clear, end="", flush=True)
        if not any(stage.is_active for stage in stages):
            return looks, stages
        if not silent:
            status(folder.path, stages, watching=True)
            sys.stdout.flush()
        time.sleep(max(WATCH_S, (time.monotonic() - asked) / WATCH_SHARE))
