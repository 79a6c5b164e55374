"""Noise in measured speeds: what it costs a swarm, and whether ignoring differences below 10 % costs anything.

Every decision sees each server's throughput with another error, of up to NOISE. `even` is what block servers do: the
planner sees the mean of a class in place of each throughput (stagger/blocks/placement/noise.py). All results depend
only on the seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from stagger.blocks.placement.noise import even
from stagger.blocks.placement.rules import Rule, Setting, Swarm, planner
from stagger.blocks.placement.spans import Span
from stagger.blocks.simulation.policies import POLICIES, REALISTIC
from stagger.blocks.simulation.swarm import Outcome, simulate
from stagger.blocks.simulation.traces import trace
from stagger.blocks.simulation.upper_bounds import bound_steps

#: Largest error of a measured throughput, as a share. Equal jobs of one machine differed by 6 to 9 %.
NOISE = 0.08

TOTAL_BLOCKS, HOURS = 80, 3.0

SCENARIOS = (("churn", 32), ("slurm", 24), ("join", 32), ("wave", 32))


def noisy(spans: Sequence[Span], setting: Setting) -> dict[str, float]:
    """Server id -> its throughput with an error."""
    return {span.server_id: span.throughput * (1 + setting.rng.uniform(-NOISE, NOISE)) for span in spans}


def rule(*, errors: bool, classes: bool) -> Rule:
    """The planner, with errors in what it sees, and with classes in place of throughputs."""

    def decide(local_id: str, swarm: Swarm, setting: Setting) -> dict[str, range]:
        seen = noisy(swarm.spans, setting) if errors else {}
        views = [
            [replace(span, throughput=seen.get(span.server_id, span.throughput)) for span in spans]
            for spans in (swarm.spans, swarm.online)
        ]
        spans, online = [even(spans) for spans in views] if classes else views
        return planner(local_id, replace(swarm, spans=spans, online=online), setting)

    return decide


VARIANTS = {
    "exact": rule(errors=False, classes=False),
    "exact, even": rule(errors=False, classes=True),
    "noisy": rule(errors=True, classes=False),
    "noisy, even": rule(errors=True, classes=True),
}


def outcomes(scenario: str, servers: int, seeds: range) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {name: [] for name in VARIANTS}
    for seed in seeds:
        servers_of = trace(scenario, servers, HOURS, seed, TOTAL_BLOCKS)
        bound = bound_steps(servers_of, HOURS * 3600, TOTAL_BLOCKS)
        for name, decide in VARIANTS.items():
            policy = replace(POLICIES["recommended"], rule=decide)
            found[name].append(
                simulate(servers_of, bound, policy, REALISTIC, hours=HOURS, total_blocks=TOTAL_BLOCKS, seed=seed)
            )
    return found


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
    table = {}
    for scenario, servers in SCENARIOS:
        for name, found in outcomes(scenario, servers, seeds).items():
            table[f"{scenario} {servers}, {name}"] = {
                "percent_of_bound": round(100 * mean(one.share for one in found), 1),
                "moves_per_server_hour": round(mean(one.moves_per_server_hour for one in found), 2),
                "blocks_loaded": round(mean(one.blocks_loaded for one in found)),
            }
    print(json.dumps({"noise": NOISE, "seeds": len(seeds), "results": table}, indent=2))


if __name__ == "__main__":
    main()
