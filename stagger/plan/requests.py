"""How many requests to remote storage the start of a job stands for: the R of `window_for_limit`. Counted by a test."""

from __future__ import annotations

import math

from stagger.rundir.run_folder import StageInput
from stagger.spec.executors import SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import is_local

#: Two range reads, for the plan's entry and frame; then, at a rank's end, its completion record and its log.
PLAN_REQUESTS, END_REQUESTS = 2, 2


def not_yet_planned(stage: StageSpec) -> StageInput:
    """What is assumed of a stage whose input is to be made yet: for each rank a shard, and an output of each writer."""
    source, *others = (str(step.params.get("path", "")) for step in stage.pipeline)
    return StageInput(
        remote_shards=0 if is_local(source) else stage.tasks,
        remote_outputs=sum(not is_local(path) for path in others) * stage.tasks,
    )


def requests_of_rank(spec: RunSpec, stage: StageSpec, planned: StageInput) -> int:
    """What one rank asks for from its start to its end, on average: the plan, its shards, its outputs, its records."""
    control = 0 if is_local(spec.run_dir) else PLAN_REQUESTS + spec.pickled + END_REQUESTS
    if control and stage.commit == "shard":  # Of the last shard the completion record tells.
        control += max(0, math.ceil(planned.remote_shards / stage.tasks) - 1)
    return control + math.ceil((planned.remote_shards + planned.remote_outputs) / stage.tasks)


def requests_per_start(spec: RunSpec, stage: StageSpec, planned: StageInput) -> int:
    """What a job asks for without a pause: until its read-ahead is full, or as long as its ranks are shorter than that.

    0 when it asks for nothing remote.
    """
    ranks = stage.executor.ranks_per_job if isinstance(stage.executor, SlurmSpec) else 1
    read_ahead, rank_bytes = spec.read_ahead_mb * 10**6, planned.bytes / stage.tasks
    if rank_bytes <= read_ahead:
        short = min(ranks, math.floor(read_ahead / rank_bytes)) if rank_bytes else 1
        return short * requests_of_rank(spec, stage, planned)
    control = 0 if is_local(spec.run_dir) else PLAN_REQUESTS + spec.pickled
    shards = planned.remote_shards / stage.tasks
    # The next shard is asked for as soon as the one before it fits.
    return control + math.ceil(min(shards, math.floor(shards * read_ahead / rank_bytes) + 1))
