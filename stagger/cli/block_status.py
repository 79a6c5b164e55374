"""`stagger blocks status`: look at a swarm, and print it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from stagger.blocks.swarm_place import registry_folder
from stagger.cli.chart import bars
from stagger.cli.show import CLEAR
from stagger.errors import StaggerError, counted, missing_extra
from stagger.ranks import format_ranks
from stagger.rundir.launch_records import LaunchRecord
from stagger.rundir.run_folder import RunRecord, Stage
from stagger.spec.models import StageSpec
from stagger.status.look import activities, launches_of
from stagger.terminal import logger, say

try:
    from stagger.blocks.server.records import attempt_of, rank_of
    from stagger.blocks.server.registry import Registry
    from stagger.blocks.swarm_status import ServerLine, SwarmStatus, swarm_status
except ImportError as error:
    raise missing_extra("blocks", str(error.name), error) from error

#: Seconds between two refreshes of `stagger blocks status --watch`.
WATCH_S = 5.0

#: Most columns in which a model's blocks are drawn.
COLUMNS = 60

#: Characters for a server's block: served; loading; still served, but to be dropped.
SERVED, LOADING, DROPPING = "#", "+", "-"


def stage_of_blocks(record: RunRecord, name: str | None) -> StageSpec:
    """The stage that hosts blocks, or the named one. Raises StaggerError when it hosts none, or several stages do."""
    stages = [stage for stage in record.spec.chosen(name) if stage.blocks is not None]
    if not stages:
        what = f"Stage {name} of {record.spec.run_dir}" if name else record.spec.run_dir
        raise StaggerError(f"{what} hosts no blocks; see its progress with: stagger status {record.spec.run_dir}")
    if len(stages) > 1:
        names = ", ".join(stage.name for stage in stages)
        raise StaggerError(f"Several stages host blocks; say which with --stage: {names}.")
    return stages[0]


def looks(stage: Stage) -> Iterator[tuple[SwarmStatus, bool]]:
    """Yield the swarm's state, read anew each time, and whether any of its jobs is still queued or running."""
    blocks = stage.spec.blocks
    assert blocks is not None
    assert blocks.total is not None
    place = registry_folder(stage.folder.path)
    registry = Registry(stage.folder.storage, place, blocks.total, lease_s=blocks.lease, tell=logger.warning)
    while True:
        (launches,) = launches_of([stage])
        jobs, (activity,) = activities([stage], [launches], brief=True)
        for note in jobs.notes:
            logger.warning(note)
        running = activity.running | activity.starting.keys()
        status = swarm_status(registry, blocks.servers, running)
        yield with_replacements(status, launches), bool(activity.ranks)


def with_replacements(status: SwarmStatus, launches: Sequence[LaunchRecord]) -> SwarmStatus:
    """The status in which the servers that are gone say which job replaces them."""
    latest = {
        rank: (one, array) for one in launches for array in getattr(one, "arrays", ()) for rank in array.rank_list
    }
    lines = []
    for server in status.servers:
        rank, (launch, _) = rank_of(server.server), attempt_of(server.server)
        if server.state == "GONE" and rank in latest and latest[rank][0].launch > launch:
            one, array = latest[rank]
            job = f"{array.job_id}_{array.rank_list.index(rank)}"
            server = replace(server, reason=f"{server.reason}; replaced by job {job} (launch {one.launch})")
        lines.append(server)
    return replace(status, servers=lines)


def watch(stage: Stage, silent: bool) -> tuple[SwarmStatus, bool]:
    """Print the swarm every WATCH_S seconds until none of its jobs is queued or running; return the last look.

    `silent` prints nothing.
    """
    clear = CLEAR if sys.stdout.isatty() and not silent else ""
    for status, active in looks(stage):
        if not active:
            break
        if not silent:
            print(clear, end="")
            show(status)
            sys.stdout.flush()
        time.sleep(WATCH_S)
    return status, active


def document(stage: Stage, status: SwarmStatus) -> dict[str, Any]:
    return {"run_dir": stage.run.path, "stage": stage.name, **status.document()}


def show(status: SwarmStatus) -> None:
    """Print a summary of the swarm, the throughput of the blocks, and one line per server."""
    states = [(status.count(state), word) for state, word in STATES]
    say(f"{counted(status.wanted, 'server')}: {', '.join(f'{n} {word}' for n, word in states if n) or 'none present'}")
    slowest = status.online[status.weakest]
    share = f", {100 * slowest / status.bound:.0f} % of the upper bound for these servers" if status.bound else ""
    say(
        f"{counted(status.total_blocks, 'block')}, the slowest (block {status.weakest}):"
        f" {slowest:.4g} requests/s{share}"
    )
    if status.capacity:
        say(f"with the best routing, {status.capacity:.4g} requests/s pass all blocks")
    if slowest == 0:
        say(f"blocks without a server: {format_ranks(b for b, rate in enumerate(status.online) if not rate)}")
    width = min(COLUMNS, status.total_blocks)
    columns = [
        min(status.online[i * status.total_blocks // width : max(1, (i + 1) * status.total_blocks // width)])
        for i in range(width)
    ]
    say()
    say(f"{'requests/s':<24} {bars(columns, 1)[0]}")
    for server in status.servers:
        say(line(server, status.total_blocks, width))
    say()
    say(f"{SERVED} served  {LOADING} loading  {DROPPING} being dropped")


def show_none(stage: Stage, status: SwarmStatus) -> None:
    """Print that nothing is left of a swarm, or that nothing of it is there yet."""
    say(f"{counted(status.wanted, 'server')}: none is queued or running; see: stagger status {stage.run.path}")


#: State of a server -> its name in the summary.
STATES = (("ONLINE", "online"), ("JOINING", "loading"), ("LEAVING", "leaving"), ("GONE", "gone"))


def line(server: ServerLine, total_blocks: int, width: int) -> str:
    place = f"{server.host}{f':{server.port}' if server.port else ''}"
    name = f"{server.server:<9} {place:<14.14}"
    if server.reason:
        return f"{name} {server.state.lower()}: {server.reason}"
    moves = f", {counted(server.moves, 'move')}" if server.moves else ""
    what = f"{server.start}-{server.end - 1}, {server.throughput:.4g}/s{moves}"
    return f"{name} {drawn(server, total_blocks, width)} {', '.join([what, *told(server)])}"


#: What hosts say about themselves and count -> how a line shows it. `stagger.blocks.host` explains the keys.
SHOWN: dict[str, Callable[[Any], str]] = {
    "address": str,
    "dtype": str,
    "fingerprint": lambda value: f"model {str(value)[:8]}",
    "tokens_per_s": lambda value: f"{float(value):.4g} tokens/s",
    "queue": lambda value: f"queue {int(value):,}",
    "busy": lambda value: f"{100 * float(value):.0f} % busy",
}


def told(server: ServerLine) -> list[str]:
    """What a server says about itself, as phrases. Values of an unexpected type are left to --json."""
    found = []
    for key, value in (server.about | server.counters).items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if key in SHOWN:
                found.append(SHOWN[key](value)[:60])
    return found


def drawn(server: ServerLine, total_blocks: int, width: int) -> str:
    """The model's blocks in `width` columns, with a character where the server serves, loads or drops a block."""
    served, target = range(*(server.serving or (0, 0))), range(server.start, server.end)
    cells = []
    for column in range(width):
        blocks = range(column * total_blocks // width, max(1, (column + 1) * total_blocks // width))
        if any(block in target for block in blocks):
            cells.append(SERVED if all(block in served for block in blocks if block in target) else LOADING)
        else:
            cells.append(DROPPING if any(block in served for block in blocks) else " ")
    return "".join(cells)
