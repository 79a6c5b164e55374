"""Shared by the benchmarks that plan: a stage of a reader and a writer, planned as a launch does, phase by phase."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any


def planned(
    reader: dict[str, Any],
    run_dir: str,
    tasks: int,
    shard_by: str = "count",
    filename: str = "{rank}.jsonl",
    steps: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Plan a stage of a JSON Lines reader and writer, and write the plan. `steps` are objects in place of them.

    Returns the path, the fingerprint and the bytes of the plan, its shards, and the CPU of each phase.
    """
    from stagger.plan.stage_plan import make_plan
    from stagger.plan.stage_steps import create_steps
    from stagger.rundir.stage_folder import StageFolder
    from stagger.spec.models import StageSpec
    from stagger.storage.storage import Storage

    clock = [time.process_time()]
    pipeline = [{"read_jsonl": reader}, {"write_jsonl": {"path": f"{run_dir}/output", "filename": filename}}]
    stage = StageSpec.model_validate({"name": "plan", "tasks": tasks, "shard_by": shard_by, "pipeline": pipeline})
    plan = make_plan(Storage(), stage, create_steps(stage, steps))
    clock.append(time.process_time())
    path = StageFolder(Storage(), run_dir).plan(plan.fingerprint)
    plan.write(Storage(), path)
    clock.append(time.process_time())
    phases = {name: clock[i + 1] - clock[i] for i, name in enumerate(("make_plan", "write"))}
    size = os.path.getsize(path)
    return {"path": path, "fingerprint": plan.fingerprint, "bytes": size, "shards": plan.shards, "phases": phases}
