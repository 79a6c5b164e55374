"""Block placement: CPU of choosing blocks and of deciding to move, compared with a plain implementation of the rules.

The plain implementation is the oracle of the tests (tests/kit/blocks_oracle.py); `at_once` sorts all windows in one
call of numpy. All answers must be equal. The programs take turns in one process, so ratios hold on a busy machine too.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from benchmarks.kit import measure
from stagger.blocks.placement import petals
from stagger.blocks.placement.spans import Span
from tests.kit import blocks_oracle

#: (share of the model that fits on a server, its speed) for six kinds of servers, which differ about as GPUs do.
KINDS = ((0.09, 1.0), (0.12, 1.5), (0.16, 3.0), (0.25, 2.2), (0.33, 6.0), (0.5, 9.0))

#: (blocks, servers, required speed of a decision as a multiple of the plain implementation's).
DECISIONS = ((80, 300, 2), (256, 1000, 5))


def swarm(total_blocks: int, servers: int, how: str) -> list[Span]:
    """Servers of one kind (`equal`) or of all kinds, at random places or, with `joined`, where rule 1 puts them."""
    draw = random.Random(f"{total_blocks} {servers} {how}")
    spans: list[Span] = []
    for index in range(servers):
        room, speed = (0.2, 1.0) if how == "equal" else draw.choice(KINDS)
        length = int(room * total_blocks)
        throughput = speed if how == "equal" else speed * draw.uniform(0.8, 1.2)
        start = draw.randrange(total_blocks - length + 1)
        if how == "joined":
            start = petals.choose_best_blocks(length, spans, total_blocks).start
        spans.append(Span(f"{index:05}", start, start + length, throughput))
    return spans


def best_start_at_once(throughputs: NDArray[np.float64], length: int) -> int:
    """The same choice in one call of numpy."""
    return int(np.lexsort(np.sort(sliding_window_view(throughputs, length), axis=1).T[::-1])[0])


def compare(programs: dict[str, tuple[Callable[[], object], int]], repeat: int) -> dict[str, Any]:
    """CPU ms per call of each (program, calls in a row), measured in turns, and the ratio of each to `stagger`.

    Raises RuntimeError when the answers differ.
    """
    answers = {name: program() for name, (program, _) in programs.items()}
    if len(set(answers.values())) > 1:
        raise RuntimeError(f"answers differ: {answers}")
    measured: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, (program, calls) in programs.items():
            started = time.process_time()
            for _ in range(calls):
                program()
            measured[name].append((time.process_time() - started) * 1000 / calls)
    fast = measured["stagger"]
    ratios = {name: statistics.median(map(lambda a, b: a / b, found, fast)) for name, found in measured.items()}
    return {
        "answer": str(answers["stagger"]),
        "cpu_ms": {name: measure.summary(found) for name, found in measured.items()},
        "times_as_fast_as": {name: round(ratio, 1) for name, ratio in ratios.items() if name != "stagger"},
    }


def choose(servers: int, how: str, repeat: int) -> dict[str, Any]:
    spans = swarm(1000, servers, how)
    programs: dict[str, tuple[Callable[[], object], int]] = {
        "stagger": (lambda: petals.choose_best_blocks(200, spans, 1000).start, 50),
        "plain": (lambda: blocks_oracle.choose_best_blocks(200, spans, 1000).start, 3),
        "at_once": (lambda: best_start_at_once(blocks_oracle.compute_throughputs(spans, 1000), 200), 10),
    }
    return compare(programs, repeat)


def choose_from_throughputs(servers: int, how: str, repeat: int) -> dict[str, Any]:
    """The choice alone, from throughputs per block that are already summed."""
    throughputs = petals.compute_throughputs(swarm(1000, servers, how), 1000)
    programs: dict[str, tuple[Callable[[], object], int]] = {
        "stagger": (lambda: petals.best_start(throughputs, 200), 200),
        "plain": (lambda: blocks_oracle.best_start(throughputs, 200), 3),
        "at_once": (lambda: best_start_at_once(throughputs, 200), 10),
    }
    return compare(programs, repeat)


def decide(total_blocks: int, servers: int, how: str, repeat: int) -> dict[str, Any]:
    """The decision of the first server that has to simulate how all others would react."""
    spans = swarm(total_blocks, servers, how)

    def decision(rule: Callable[..., bool], local: str) -> tuple[bool, float]:
        """The answer and the next random number: both programs must draw the same number of them."""
        rng = np.random.default_rng(0)
        return rule(local, spans, total_blocks, 0.99, rng=rng), rng.random()

    unused = np.random.default_rng(0).random()
    rule, plain = petals.should_choose_other_blocks, blocks_oracle.should_choose_other_blocks
    local = next(span.server_id for span in spans if decision(rule, span.server_id)[1] != unused)
    programs: dict[str, tuple[Callable[[], object], int]] = {
        "stagger": (lambda: decision(rule, local), 3),
        "plain": (lambda: decision(plain, local), 1),
        "at_once": (lambda: decision(partial(plain, best_start=best_start_at_once), local), 1),
    }
    return compare(programs, repeat)


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    requirements = []

    def note(name: str, found: dict[str, Any], least: float) -> None:
        results[name] = found
        ratio = found["times_as_fast_as"]["plain"]
        requirements.append(measure.at_least(f"{name}: times as fast as the plain reading", ratio, least))
        measure.say(f"{name}: {found['times_as_fast_as']}")

    for servers, how in ((50, "mixed"), (50, "joined"), (50, "equal"), (300, "mixed"), (300, "equal")):
        name = f"1000 blocks, span 200, {servers} servers, {how}"
        note(f"choose from throughputs, {name}", choose_from_throughputs(servers, how, options.repeat), 100)
        # At least half of this is summing, which costs all programs the same, so there is no requirement.
        results[f"choose, adding up throughputs, {name}"] = choose(servers, how, options.repeat)
    for total_blocks, servers, least in DECISIONS:
        for how in ("mixed", "joined", "equal"):
            found = decide(total_blocks, servers, how, options.repeat)
            note(f"decide, {total_blocks} blocks, {servers} servers, {how}", found, least)
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
