"""Servers that claim blocks concurrently, one process each: `python -m tests.kit.claimants FOLDER OPTIONS COUNT HOW`.

They are forked once everything is imported, and start together. HOW: `whole`; or every eighth server is killed by
kill -9 while `deciding`, or once it has `claimed`; or they look and announce `unclaimed`. Prints the servers' exit
statuses.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stagger.blocks.placement.petals import choose_best_blocks, compute_throughputs
from stagger.blocks.placement.spans import ServerState, Span
from stagger.blocks.server.records import Claim, Placed, ServerRecord, View
from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage

TOTAL = 80

#: (blocks held, throughput) of the servers, in turn.
KINDS = ((7, 1.0), (10, 1.5), (13, 3.0), (20, 2.2))


def name_of(number: int) -> str:
    return f"{number:05d}"


def join_as(name: str, blocks: int, throughput: float) -> Callable[[View], dict[str, Placed]]:
    """The decision of a new server: it takes the blocks with the lowest throughput."""

    def decide(view: View) -> dict[str, Placed]:
        window = choose_best_blocks(blocks, view.spans(), TOTAL)
        return {name: Placed(window.start, window.stop, throughput)}

    return decide


def one_at_a_time(servers: Mapping[str, tuple[int, float]], total_blocks: int = TOTAL) -> float:
    """Requests per second of the slowest block when servers (blocks, throughput) join in order, each seeing all before.

    The names matter: throughputs are summed in the order of names, with rounding.
    """
    spans: list[Span] = []
    for name, (blocks, throughput) in servers.items():
        window = choose_best_blocks(blocks, spans, total_blocks)
        spans.append(Span(name, window.start, window.stop, throughput))
    return float(compute_throughputs(spans, total_blocks).min())


def who_claimed(storage: Storage, folder: str, count: int) -> list[int]:
    """The numbers of the servers that made the first `count` claims, in order."""
    paths = [f"{folder}/claim.{number:09d}.json" for number in range(1, count + 1)]
    return [int(Claim.decode(data or b"", TOTAL).by) for data in storage.read_many(paths)]


def kinds(order: Iterable[int]) -> dict[str, tuple[int, float]]:
    """(blocks held, throughput) of the servers with these numbers, by name."""
    return {name_of(number): KINDS[number % len(KINDS)] for number in order}


def record(name: str, start: int = 0, end: int = 10, claim: int = 0, **more: Any) -> ServerRecord:
    fields: dict[str, Any] = {"state": ServerState.ONLINE, "serving": (start, end), "throughput": 1.0, **more}
    return ServerRecord(name, "node", 1234, start=start, end=end, claim=claim, **fields)


def work(folder: str, options: dict[str, Any], number: int, how: str) -> None:
    name = name_of(number)
    member = Registry(Storage(options), folder, TOTAL, name)
    victim = number % 8 == 0

    def decide(view: View) -> dict[str, Placed]:
        if victim and how == "deciding":
            os.kill(os.getpid(), signal.SIGKILL)
        return join_as(name, *kinds([number])[name])(view)

    if how == "unclaimed":
        (placed,) = decide(member.refresh()).values()
        member.announce(record(name, placed.start, placed.end, throughput=placed.throughput))
        return
    claim = member.claim(decide)
    assert claim is not None
    if victim and how == "claimed":
        os.kill(os.getpid(), signal.SIGKILL)
    placed = claim.placements[name].placed
    member.announce(record(name, placed.start, placed.end, claim.number, throughput=placed.throughput))


def main(folder: str, options: dict[str, Any], count: int, how: str) -> list[int]:
    if "s3" in options:
        import obstore  # noqa: F401 - imported once, before the fork.
        import s3fs  # noqa: F401
    ready, go = os.pipe(), os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go[1])
                os.write(ready[1], b"x")
                os.read(go[0], 1)  # Returns when the parent closes the pipe.
                work(folder, options, number, how)
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        pids.append(pid)
    for _ in range(count):
        os.read(ready[0], 1)
    os.close(go[1])
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
