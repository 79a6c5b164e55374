"""Made-up run files and launch records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagger.ranks import parse_ranks
from stagger.rundir.completion_table import CompletionTable
from stagger.rundir.launch_records import ArrayRecord, EndJobRecord, SlurmLaunch
from stagger.rundir.stage_folder import columns_of
from stagger.spec.models import RunSpec


def spec(executor: dict[str, Any], *names: str, **depends: list[str]) -> RunSpec:
    """A run with these stages; `depends` maps a stage to the stages that it depends on."""
    stages = [
        {"name": name, "pipeline": ["read_jsonl"], "executor": executor, "depends": depends.get(name, [])}
        for name in names
    ]
    return RunSpec.model_validate({"name": "p", "run_dir": "/run", "cwd": "/", "stages": stages})


def launch_record(number: int, ranks: str, *, ranks_per_job: int = 1, **more: Any) -> SlurmLaunch:
    return SlurmLaunch(
        launch=number,
        time=0.0,
        ranks=ranks,
        start_policy="uniform",
        window_s=60,
        settings="{}",
        ranks_per_job=ranks_per_job,
        resources={},
        log_dir="",
        arrays=(ArrayRecord("7", f"a-{number}", len(parse_ranks(ranks)), ranks),),
        finalize=EndJobRecord(None, f"end-{number}"),
        **more,
    )


def completion(rank: int, **more: Any) -> Any:
    """The completion record of a rank that had nothing to do, with other values in some fields."""
    record = {
        "rank": rank,
        "world_size": 1,
        "stage": "stage",
        "fingerprint": "0" * 64,
        "attempt": "1",
        "launch": 1,
        "restart": 0,
        "job": f"7_{rank}",
        "host": "n1",
        "pid": 1,
        "start_policy": "uniform",
        "window_s": 0,
        "delay_s": 0.0,
        "script_started": 100.0,
        "started": 100.0,
        "ended": 101.0,
        "cpu_s": 0.5,
        "peak_rss_mb": 20,
        "retried": {"requests": {}, "waited_s": 0.0},
        "first_read": None,
        "shards": 0,
        "bytes_in": 0,
        "records_in": 0,
        "records_out": 0,
        "bytes_out": 0,
        "outputs": [],
        "bad_records": {"skipped": {}, "examples": []},
        "steps": [],
    }
    return {**record, **more}


def table_of(records: Sequence[Any]) -> CompletionTable:
    """The table of completion records, some of whose fields may be missing."""
    table = CompletionTable()
    if records:
        ranks = [record["rank"] for record in records]
        complete = [completion(**record) for record in records]
        table.append(ranks, [0] * len(ranks), complete, columns_of(complete))
    return table
