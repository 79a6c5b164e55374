"""Compare policies on the same servers, repeat that with other servers, and use all processors."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from stagger.blocks.simulation.policies import COMPARED, POLICIES, REALISTIC, Conditions
from stagger.blocks.simulation.steps import Steps
from stagger.blocks.simulation.swarm import Outcome, simulate
from stagger.blocks.simulation.traces import trace
from stagger.blocks.simulation.upper_bounds import bound_steps

#: Number of blocks of the simulated model: as in Llama 2 and 3 with 70 billion parameters.
TOTAL_BLOCKS = 80


@dataclass(frozen=True)
class Experiment:
    """The parameters of a simulation. Servers, events and random decisions depend on the seeds alone."""

    scenario: str
    servers: int
    hours: float = 3.0
    seeds: tuple[int, ...] = (0,)
    policies: tuple[str, ...] = COMPARED
    conditions: Conditions = REALISTIC
    total_blocks: int = TOTAL_BLOCKS


@dataclass(frozen=True)
class Comparison:
    """The outcomes of each policy, one per seed, and the bound over time of the first seed, whose steps are kept."""

    experiment: Experiment
    outcomes: dict[str, list[Outcome]]
    bound: Steps


def compare(experiment: Experiment, processes: int | None = None) -> Comparison:
    """Simulate all policies for all seeds, in `processes` processes (by default one per available processor)."""
    seeds = experiment.seeds
    run, first = partial(run_seed, experiment), seeds[0]
    processes = min(len(seeds), processes or len(os.sched_getaffinity(0)))
    if processes > 1:
        # Not by fork: it would copy locks that the caller's threads hold.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(run, seeds, [seed == first for seed in seeds]))
    else:
        found = [run(seed, seed == first) for seed in seeds]
    outcomes = {name: [outcomes[index] for _, outcomes in found] for index, name in enumerate(experiment.policies)}
    return Comparison(experiment, outcomes, found[0][0])


def run_seed(experiment: Experiment, seed: int, keep_steps: bool = False) -> tuple[Steps, list[Outcome]]:
    """Simulate all policies with one seed's servers; return the bound over time, and an outcome per policy."""
    end_s = experiment.hours * 3600
    servers = trace(experiment.scenario, experiment.servers, experiment.hours, seed, experiment.total_blocks)
    bound = bound_steps(servers, end_s, experiment.total_blocks)
    outcomes = []
    for name in experiment.policies:
        outcome = simulate(
            servers,
            bound,
            POLICIES[name],
            experiment.conditions,
            hours=experiment.hours,
            total_blocks=experiment.total_blocks,
            seed=seed,
        )
        outcomes.append(outcome if keep_steps else replace(outcome, steps=[]))
    return bound, outcomes


@dataclass(frozen=True)
class Row:
    """The results of one policy: means over the seeds, and the range of the throughput. Times in seconds."""

    policy: str
    about: str
    lease_s: float
    percent_of_bound: float
    lowest: float
    highest: float
    moves: float
    moves_per_server_hour: float
    blocks_loaded: float
    uncovered_s: float
    collisions: float
    percent_of_capacity: float
    """Routing capacity, as a share of what no placement exceeds."""


def rows(comparison: Comparison) -> list[Row]:
    return [_row(comparison.experiment, outcomes) for outcomes in comparison.outcomes.values()]


def _row(experiment: Experiment, outcomes: Sequence[Outcome]) -> Row:
    policy = POLICIES[outcomes[0].policy]
    shares = [100 * outcome.share for outcome in outcomes]
    lease_s = experiment.conditions.lease_s

    def mean(name: str) -> float:
        return round(statistics.fmean(getattr(outcome, name) for outcome in outcomes), 2)

    return Row(
        policy=policy.name,
        about=policy.about,
        lease_s=policy.lease_s if lease_s is None else lease_s,
        percent_of_bound=round(statistics.fmean(shares), 2),
        lowest=round(min(shares), 2),
        highest=round(max(shares), 2),
        moves=mean("moves"),
        moves_per_server_hour=mean("moves_per_server_hour"),
        blocks_loaded=mean("blocks_loaded"),
        uncovered_s=mean("uncovered_s"),
        collisions=mean("collisions"),
        percent_of_capacity=round(100 * statistics.fmean(outcome.capacity_share for outcome in outcomes), 2),
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """The JSON document: the experiment, and the results of each policy."""
    bounds = [outcome.bound for outcome in next(iter(comparison.outcomes.values()))]
    return {
        **asdict(comparison.experiment),
        "bound": {"mean": statistics.fmean(bounds), "lowest": min(bounds), "highest": max(bounds)},
        "results": [asdict(row) for row in rows(comparison)],
    }
