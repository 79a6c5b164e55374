"""Balancing blocks in simulation: the throughput of each policy as a share of the bound, its moves, and blocks loaded.

Produces the figures of docs/block-placement.md. All results except times depend only on the seeds.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.kit import measure
from stagger.blocks.placement.joint_moves import planned_moves
from stagger.blocks.placement.petals import choose_best_blocks
from stagger.blocks.placement.spans import Span
from stagger.blocks.simulation.policies import COMPARED, IDEAL, PETALS_LEASE_S, REALISTIC
from stagger.blocks.simulation.report import TOTAL_BLOCKS, Experiment, compare, document
from stagger.blocks.simulation.traces import trace

#: Without loading and waiting, the problems that lock, delta and guard prevent do not occur.
IN_IDEAL = ("none", "new only", "0.75", "0.99", "own gain", "planner delta", "recommended")

#: The names of two policies: plain 0.99, and the recommended one, in which the servers take turns.
PLAIN, RECOMMENDED = "0.99", "recommended"

EXPERIMENTS = {
    "churn 32": Experiment("churn", 32),
    "slurm 24": Experiment("slurm", 24),
    "join 32": Experiment("join", 32),
    "wave 32": Experiment("wave", 32),
    "churn 32, ideal": Experiment("churn", 32, policies=IN_IDEAL, conditions=IDEAL),
    "join 32, ideal": Experiment("join", 32, policies=IN_IDEAL, conditions=IDEAL),
    "churn 32, all leases 240 s": Experiment(
        "churn",
        32,
        policies=("0.99 lock", "0.99 lock delta", "0.99 guard", "own gain", "planner delta", "recommended"),
        conditions=replace(REALISTIC, lease_s=PETALS_LEASE_S),
    ),
}

#: Limit in CPU seconds for 20 seeds of one scenario with all policies: two minutes of two cores.
CPU_S = 240.0


def cpu_s() -> float:
    """CPU seconds of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def planning_ms(servers: int, repeat: int) -> dict[str, float]:
    """CPU ms of one plan for a swarm whose servers joined one after another."""
    spans: list[Span] = []
    for server in trace("join", servers, 3, 0, TOTAL_BLOCKS):
        blocks = choose_best_blocks(server.length, spans, TOTAL_BLOCKS)
        spans.append(Span(server.server_id, blocks.start, blocks.stop, server.throughput))
    taken = []
    for seed in range(5 * repeat):
        rng, started = np.random.default_rng(seed), time.process_time()
        planned_moves(spans, spans, TOTAL_BLOCKS, seconds_per_block=3, rng=rng)
        taken.append((time.process_time() - started) * 1000)
    return measure.summary(taken)


def goals(found: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The requirements on the experiments in `found`."""
    requirements = []
    for name in ("churn 32, ideal", "join 32, ideal"):
        if name in found:
            share = found[name][PLAIN]["percent_of_bound"]
            requirements.append(measure.at_least(f"{name}: {PLAIN}: % of the bound", share, 85))
    for name in ("churn 32", "slurm 24"):
        if name in found:
            row, plain = found[name][RECOMMENDED], found[name][PLAIN]
            loaded = round(row["blocks_loaded"] / plain["blocks_loaded"], 3)
            requirements += [
                measure.at_least(f"{name}: {RECOMMENDED}: % of the bound", row["percent_of_bound"], 80),
                measure.requirement(
                    f"{name}: {RECOMMENDED}: moves per server and hour", row["moves_per_server_hour"], 4
                ),
                measure.requirement(f"{name}: {RECOMMENDED}: blocks loaded, of those of plain 0.99", loaded, 0.25),
            ]
    return requirements


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", help="names of experiments, separated by ;")
    options = parser.parse_args()
    chosen = options.only.split(";") if options.only else list(EXPERIMENTS)
    results: dict[str, Any] = {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    requirements = []
    for name in chosen:
        experiment = replace(EXPERIMENTS[name], seeds=tuple(range(options.seeds)))
        started, used = time.perf_counter(), cpu_s()
        made = document(compare(experiment))
        cost = {"wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu_s() - used, 1)}
        found[name] = {row["policy"]: row for row in made["results"]}
        results[name] = {**made, **cost}
        if experiment.policies == COMPARED:
            per_20 = round(cost["cpu_s"] * 20 / options.seeds, 1)
            requirements.append(measure.requirement(f"{name}: CPU s of 20 seeds, all policies", per_20, CPU_S))
        measure.say(f"{name}: {cost}")
    for servers in (24, 32, 64):
        taken = planning_ms(servers, options.repeat)
        results[f"planning for {servers} servers, CPU ms"] = taken
        requirements.append(measure.requirement(f"planning for {servers} servers: CPU ms", taken["median"], 50))
    return measure.report(options, results, [*goals(found), *requirements])


if __name__ == "__main__":
    sys.exit(main())
