"""Counts the requests to remote storage that a job makes at its start: R in `window_for_limit`. A test verifies it."""

from __future__ import annotations

import math

from stagger.rundir.run_folder import StageInput
from stagger.spec.executors import SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import is_local

#: Each rank makes two range reads of the plan (entry and frame). At its end it writes a claim, a record and a log.
PLAN_REQUESTS, END_REQUESTS = 2, 3


def not_yet_planned(stage: StageSpec) -> StageInput:
    """Assumption for a stage whose input does not exist yet: each rank has one shard, and one output per writer."""
    source, *others = (str(step.params.get("path", "")) for step in stage.pipeline)
    return StageInput(
        remote_shards=0 if is_local(source) else stage.tasks,
        remote_outputs=sum(not is_local(path) for path in others) * stage.tasks,
    )


def requests_of_rank(spec: RunSpec, stage: StageSpec, planned: StageInput) -> int:
    """Mean number of requests that one rank makes from start to end: for the plan, its shards, outputs and records."""
    control = 0 if is_local(spec.run_dir) else PLAN_REQUESTS + spec.pickled + END_REQUESTS
    if control and stage.commit == "shard":  # Each shard but the last has a claim and a progress record.
        control += 2 * max(0, math.ceil(planned.remote_shards / stage.tasks) - 1)
    return control + math.ceil((planned.remote_shards + planned.remote_outputs) / stage.tasks)


def requests_per_start(spec: RunSpec, stage: StageSpec, planned: StageInput) -> int:
    """Requests that a job makes back to back after its start: those of all workers that it starts at once.

    0 if nothing is remote.
    """
    executor = stage.executor
    if not isinstance(executor, SlurmSpec):
        return requests_of_worker(spec, stage, planned, 1)
    ranks = min(executor.ranks_per_job, stage.tasks)
    at_once = min(executor.most_at_once, ranks)
    return at_once * requests_of_worker(spec, stage, planned, math.ceil(ranks / at_once))


def requests_of_worker(spec: RunSpec, stage: StageSpec, planned: StageInput, ranks: int) -> int:
    """Requests of the first of `ranks` ranks that run one after another: up to a full read-ahead buffer, or, for small
    ranks, those of all ranks that fit into one.
    """
    read_ahead, rank_bytes = spec.read_ahead_mb * 10**6, planned.bytes / stage.tasks
    if rank_bytes <= read_ahead:
        short = min(ranks, math.floor(read_ahead / rank_bytes)) if rank_bytes else 1
        return short * requests_of_rank(spec, stage, planned)
    control = 0 if is_local(spec.run_dir) else PLAN_REQUESTS + spec.pickled
    shards = planned.remote_shards / stage.tasks
    # One more than fits: a shard is requested as soon as the one before it has found room.
    return control + math.ceil(min(shards, math.floor(shards * read_ahead / rank_bytes) + 1))
