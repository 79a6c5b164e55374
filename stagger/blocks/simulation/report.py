"""Policies compared: the same servers for each, several times with other servers, on all processors."""

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
from stagger.blocks.simulation.swarm import Outcome, bound_steps, simulate
from stagger.blocks.simulation.traces import trace

#: The number of blocks of the models that are simulated: that of Llama 2 and 3 with 70 billion parameters.
TOTAL_BLOCKS = 80


@dataclass(frozen=True)
class Experiment:
    """What is simulated. Servers, events and random decisions depend on the seeds alone."""

    scenario: str
    servers: int
    hours: float = 3.0
    seeds: tuple[int, ...] = (0,)
    policies: tuple[str, ...] = COMPARED
    conditions: Conditions = REALISTIC
    total_blocks: int = TOTAL_BLOCKS


@dataclass(frozen=True)
class Comparison:
    """All outcomes by policy, one for each seed; and the bound over time of the first seed, whose steps are kept."""

    experiment: Experiment
    outcomes: dict[str, list[Outcome]]
    bound: Steps


def compare(experiment: Experiment, processes: int | None = None) -> Comparison:
    """Simulate all policies for all seeds, in as many processes as there are processors, or as said."""
    seeds = experiment.seeds
    run, first = partial(run_seed, experiment), seeds[0]
    processes = min(len(seeds), processes or len(os.sched_getaffinity(0)))
    if processes > 1:
        # Not by fork: it copies whatever threads of the caller hold.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(run, seeds, [seed == first for seed in seeds]))
    else:
        found = [run(seed, seed == first) for seed in seeds]
    outcomes = {name: [outcomes[index] for _, outcomes in found] for index, name in enumerate(experiment.policies)}
    return Comparison(experiment, outcomes, found[0][0])


def run_seed(experiment: Experiment, seed: int, keep_steps: bool = False) -> tuple[Steps, list[Outcome]]:
    """All policies with one seed's servers, and the bound over time."""
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
    """One policy: means over the seeds, and of the throughput the range."""

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
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """For JSON: what was simulated, and what came of each policy."""
    bounds = [outcome.bound for outcome in next(iter(comparison.outcomes.values()))]
    return {
        **asdict(comparison.experiment),
        "bound": {"mean": statistics.fmean(bounds), "lowest": min(bounds), "highest": max(bounds)},
        "results": [asdict(row) for row in rows(comparison)],
    }
