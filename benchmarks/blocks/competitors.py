"""Placing blocks: the published competitors' allocations beside ours, on the same servers.

Under churn: Parallax' pipelines and Helix' placement against rule 2 and the recommended setting. At rest: the servers
of a swarm that has joined, placed by each, where Helix' programme can be solved too. The figures are those of
docs/block-placement.md; all depend on the seeds alone, but for the programme, which has a time limit.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.kit import measure
from stagger.blocks.placement.bound import routing_capacity, throughput_bound
from stagger.blocks.placement.joint_moves import planned_moves
from stagger.blocks.placement.petals import choose_best_blocks
from stagger.blocks.placement.spans import Span
from stagger.blocks.simulation import helix, parallax
from stagger.blocks.simulation.allocation import Resource, throughputs
from stagger.blocks.simulation.report import TOTAL_BLOCKS, Experiment, compare, document
from stagger.blocks.simulation.traces import trace

POLICIES = ("new only", "0.99 guard", "parallax", "helix", "recommended")

EXPERIMENTS = {
    f"{scenario} {servers}": Experiment(scenario, servers, policies=POLICIES)
    for scenario, servers in (("churn", 32), ("slurm", 24), ("join", 32), ("wave", 32))
}

#: What the recommended setting has to lead in: servers that divide their time evenly gain from spans that are shorter
#: than their room, which matters where a swarm is at rest; what can be routed does not depend on that.
ROUTED, SLOWEST = "percent_of_capacity", "percent_of_bound"
MEASURES = {
    "churn 32": (ROUTED, SLOWEST),
    "slurm 24": (ROUTED, SLOWEST),
    "join 32": (ROUTED, SLOWEST),
    "wave 32": (ROUTED,),
}

#: Numbers of servers of the swarms at rest; up to the last of SOLVED, Helix' programme is solved for SOLVE_S seconds.
AT_REST, SOLVED, SOLVE_S = (6, 8, 12, 24, 32), (6, 8), 20.0

#: Windows that Helix' search tries at rest, and plans that are made: servers at rest have time.
TRIED, PLANS = 4000, 40


def joined(servers: int, seed: int) -> list[Resource]:
    """Servers that have joined one at a time, by rule 1."""
    spans: list[Span] = []
    found = []
    for server in trace("join", servers, 3, seed, TOTAL_BLOCKS):
        window = choose_best_blocks(server.length, spans, TOTAL_BLOCKS)
        spans.append(Span(server.server_id, window.start, window.stop, server.throughput))
        found.append(Resource(server.server_id, server.length, server.passes, window))
    return found


def planned(servers: Sequence[Resource]) -> dict[str, range]:
    """The recommended setting's placement, once no plan pays any more."""
    spans = [Span(one.server_id, one.span.start, one.span.stop, one.over(one.span)) for one in servers]
    for seed in range(PLANS):
        rng = np.random.default_rng(seed)
        moves = planned_moves(spans, spans, TOTAL_BLOCKS, seconds_per_block=3, horizon_s=36_000, rng=rng)
        windows = {span.server_id: moves.get(span.server_id, range(span.start, span.end)) for span in spans}
        spans = [replace(span, start=windows[span.server_id].start, end=windows[span.server_id].stop) for span in spans]
    return {span.server_id: range(span.start, span.end) for span in spans}


def built(servers: Sequence[Resource]) -> dict[str, range] | None:
    """Parallax' allocation with the fastest slowest block; None where there is no room for one pipeline."""
    found = list(parallax.allocations(servers, TOTAL_BLOCKS))
    return max(found, key=lambda spans: float(throughputs(servers, spans, TOTAL_BLOCKS).min()), default=None)


def measures(servers: Sequence[Resource], spans: Mapping[str, range] | None) -> dict[str, float]:
    """The slowest block, Helix' flow and the routing capacity, in % of their bounds; 0 without a placement."""
    if spans is None:
        return {"slowest": 0.0, "flow": 0.0, "routed": 0.0}
    full = [Span(one.server_id, 0, one.room, one.passes / one.room) for one in servers]
    bound, passes = throughput_bound(full, TOTAL_BLOCKS), sum(one.passes for one in servers) / TOTAL_BLOCKS
    budgets = [
        Span(one.server_id, spans[one.server_id].start, spans[one.server_id].stop, one.passes) for one in servers
    ]
    covered = {block for span in spans.values() for block in span} == set(range(TOTAL_BLOCKS))
    return {
        "slowest": 100 * float(throughputs(servers, spans, TOTAL_BLOCKS).min()) / bound,
        "flow": 100 * helix.flow(servers, spans, TOTAL_BLOCKS) / bound if covered else 0.0,
        "routed": 100 * routing_capacity(budgets, TOTAL_BLOCKS) / passes,
    }


def at_rest(servers: int, seeds: int) -> dict[str, Any]:
    """Means over the seeds, in % of the bounds; `proven`: how often the programme's answer is known to be the best."""
    found: dict[str, list[dict[str, float]]] = {}
    proven = 0
    for seed in range(seeds):
        group = joined(servers, seed)
        placements: dict[str, Mapping[str, range] | None] = {
            "one at a time": {one.server_id: one.span for one in group},
            "recommended": planned(group),
            "parallax": built(group),
            "helix, search": helix.searched(group, TOTAL_BLOCKS, np.random.default_rng(seed), TRIED)[0],
        }
        if servers in SOLVED:
            solved = helix.optimal(group, TOTAL_BLOCKS, SOLVE_S)
            placements["helix, programme"] = solved[0] if solved else None
            proven += bool(solved and solved[1])
        for name, spans in placements.items():
            found.setdefault(name, []).append(measures(group, spans))
    means = {
        name: {key: round(statistics.fmean(one[key] for one in rows), 1) for key in rows[0]}
        for name, rows in found.items()
    }
    return {"placements": means, **({"proven": proven, "of": seeds} if servers in SOLVED else {})}


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", help="names of experiments, separated by ;, or `rest`")
    options = parser.parse_args()
    chosen = options.only.split(";") if options.only else [*EXPERIMENTS, "rest"]
    results: dict[str, Any] = {}
    requirements = []
    for name in chosen:
        if name == "rest":
            for servers in AT_REST:
                results[f"at rest {servers}"] = at_rest(servers, options.seeds)
                measure.say(f"at rest {servers}: {results[f'at rest {servers}']}")
            continue
        made = document(compare(replace(EXPERIMENTS[name], seeds=tuple(range(options.seeds)))))
        results[name] = made
        rows = {row["policy"]: row for row in made["results"]}
        measure.say(f"{name}: " + ", ".join(f"{key} {row['percent_of_bound']}" for key, row in rows.items()))
        for rival, column in itertools.product(("parallax", "helix"), MEASURES[name]):
            lead = round(rows["recommended"][column] - rows[rival][column], 2)
            requirements.append(measure.at_least(f"{name}: recommended ahead of {rival}, {column}", lead, 0))
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
