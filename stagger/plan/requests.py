"""Counts the requests to remote storage that a job makes at its start: R in `window_for_limit`. A test verifies it."""

from __future__ import annotations

import math

from stagger.pipeline.fetches import parts, range_bytes
from stagger.plan.registry_requests import registry_requests
from stagger.rundir.run_folder import StageInput
from stagger.spec.executors import SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import connections_to, is_local

#: Each rank makes two range reads of the plan (entry and frame). At its end it writes a claim, a record and a log.
PLAN_REQUESTS, END_REQUESTS = 2, 3

#: Of a step with a model in one file, for a stage that is not planned yet: the listing, config.json twice, the header,
#: and five files of the tokenizer.
MODEL_REQUESTS = 9


def not_yet_planned(stage: StageSpec) -> StageInput:
    """Assumption for a stage whose input does not exist yet: each rank has one shard, and one output per writer."""
    models = sum(not is_local(str(step.params.get("model", ""))) for step in stage.pipeline)
    models += stage.blocks is not None and not is_local(stage.blocks.model or "")
    source, *others = (str(step.params.get("path", "")) for step in stage.pipeline)
    others += (step.removed.path for step in stage.pipeline if step.removed)
    return StageInput(
        remote_shards=0 if is_local(source) else stage.tasks,
        remote_outputs=sum(not is_local(path) for path in others) * stage.tasks,
        step_requests=models * MODEL_REQUESTS,
    )


def shard_requests(spec: RunSpec, stage: StageSpec, planned: StageInput, share: float) -> float:
    """Mean number of requests that fetch the remote shards of one rank: more than one for a large shard."""
    if not planned.remote_shards:
        return 0.0
    source = str(stage.pipeline[0].params.get("path", ""))
    size = range_bytes(source, spec.read_ahead_mb * 10**6, share)
    return max(1, parts(planned.bytes // planned.remote_shards, size)) * planned.remote_shards / stage.tasks


def requests_of_rank(spec: RunSpec, stage: StageSpec, planned: StageInput, share: float = 0.0) -> int:
    """Mean number of requests that one rank makes from start to end: for the plan, its shards, outputs and records."""
    control = 0 if is_local(spec.run_dir) else PLAN_REQUESTS + spec.pickled + END_REQUESTS
    if control and stage.commit == "shard":  # Each shard but the last has a claim and a progress record.
        control += 2 * max(0, math.ceil(planned.remote_shards / stage.tasks) - 1)
    shards = shard_requests(spec, stage, planned, share)
    return control + math.ceil(shards + planned.remote_outputs / stage.tasks)


def workers_of(stage: StageSpec) -> int:
    """The most ranks that a job of the stage runs at once."""
    executor = stage.executor
    return min(executor.most_at_once, executor.ranks_per_job, stage.tasks) if isinstance(executor, SlurmSpec) else 1


def requests_per_start(spec: RunSpec, stage: StageSpec, planned: StageInput, share: float = 0.0) -> int:
    """Requests that a job makes back to back after its start: those of all workers that it starts at once.

    0 if nothing is remote. `share` is the number of requests per second that each worker may make; 0 for any number.
    """
    executor = stage.executor
    ranks = min(executor.ranks_per_job, stage.tasks) if isinstance(executor, SlurmSpec) else 1
    workers = workers_of(stage)
    return workers * requests_of_worker(spec, stage, planned, math.ceil(ranks / workers), share)


def requests_of_worker(spec: RunSpec, stage: StageSpec, planned: StageInput, ranks: int, share: float) -> int:
    """Requests of the first of `ranks` ranks that run one after another: up to a full read-ahead buffer, or, for small
    ranks, those of all ranks that fit into one. What the steps need beside their input is fetched once.
    """
    read_ahead, rank_bytes = spec.read_ahead_mb * 10**6, planned.bytes / stage.tasks
    once = planned.step_requests + registry_requests(spec, stage)
    if rank_bytes <= read_ahead:
        short = min(ranks, math.floor(read_ahead / rank_bytes)) if rank_bytes else 1
        return once + short * requests_of_rank(spec, stage, planned, share)
    control = 0 if is_local(spec.run_dir) else PLAN_REQUESTS + spec.pickled
    return once + control + math.ceil(fetched_ahead(spec, stage, planned, share))


def fetched_ahead(spec: RunSpec, stage: StageSpec, planned: StageInput, share: float) -> float:
    """Mean number of a rank's requests for shards that a full read-ahead holds: at least one, if there is one."""
    shards, rank_bytes = shard_requests(spec, stage, planned, share), planned.bytes / stage.tasks
    return min(shards, max(1.0, shards * spec.read_ahead_mb * 10**6 // rank_bytes)) if rank_bytes else shards


def connections(spec: RunSpec, stage: StageSpec, planned: StageInput) -> int:
    """The most requests for shards that a worker of the stage has in flight at its start, without a limit."""
    source = str(stage.pipeline[0].params.get("path", ""))
    return max(1, min(connections_to(source), math.floor(fetched_ahead(spec, stage, planned, 0.0))))
