"""Which failed ranks are run again, and with what."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.executor.more_resources import Defaults, scaled
from stagger.launch.retry_policy import Decision, decide
from stagger.rundir.launch_records import Group
from stagger.rundir.stage_folder import Failure
from stagger.slurm.states import STATES
from stagger.spec.changes import changed_spec
from stagger.spec.executors import RetrySpec, SlurmSpec
from stagger.spec.models import RunSpec
from stagger.status.efficiency import efficiency, sentences
from stagger.status.failed import Failed, looks_out_of_memory

FIRST = Group([1, 2, 3])


def failure(kind: str, error: str = "it broke", step: str | None = None, signal: str = "") -> Failure:
    return {"kind": kind, "error": error, "step": step, "signal": signal}


STOPPED = failure("interrupted", "stopped by SIGTERM", signal="SIGTERM")
WARNED = failure("interrupted", "stopped by SIGUSR2", signal="SIGUSR2")


@pytest.mark.parametrize(
    ("state", "record", "end", "reason"),
    [
        ("OUT_OF_MEMORY", None, "OUT_OF_MEMORY", "OUT_OF_MEMORY"),
        ("FAILED", failure("MemoryError"), "OUT_OF_MEMORY", "MemoryError"),
        ("TIMEOUT", None, "TIMEOUT", "TIMEOUT"),
        ("FAILED", WARNED, "TIMEOUT", "TIMEOUT"),  # It ended by itself when Slurm warned it.
        ("NODE_FAIL", None, "NODE_FAIL", "NODE_FAIL"),
        ("BOOT_FAIL", None, "NODE_FAIL", "NODE_FAIL"),
        (None, None, "NODE_FAIL", "lost"),
        ("PREEMPTED", STOPPED, "PREEMPTED", "PREEMPTED"),
        ("FAILED", STOPPED, "PREEMPTED", "PREEMPTED"),
        ("CANCELLED", STOPPED, "CANCELLED", "CANCELLED"),
        ("CANCELLED", None, "CANCELLED", "CANCELLED"),
        ("FAILED", failure("ValueError", step="keep_long"), "FAILED", "ValueError in keep_long"),
        ("FAILED", None, "FAILED", "lost (FAILED)"),
        ("COMPLETED", None, "FAILED", "lost (COMPLETED)"),
        # In a packed job the job's end is not each rank's.
        ("OUT_OF_MEMORY", failure("ValueError"), "FAILED", "ValueError"),
    ],
)
def test_how_a_rank_ended(state: str | None, record: Failure | None, end: str, reason: str) -> None:
    failed = Failed(1, FIRST, state, record)
    assert (failed.end, failed.reason) == (end, reason)


def test_each_kind_gets_more_of_what_it_ran_out_of() -> None:
    decision = decide(
        RetrySpec(memory_factor=3, time_factor=2),
        [
            Failed(1, FIRST, "OUT_OF_MEMORY", None),
            Failed(2, FIRST, "TIMEOUT", None),
            Failed(3, FIRST, "NODE_FAIL", None),
            Failed(4, Group([4], 1, memory_scale=3.0), "OUT_OF_MEMORY", None),
            Failed(5, FIRST, "OUT_OF_MEMORY", None),
        ],
    )
    assert decision == Decision(
        [Group([3], 1), Group([2], 1, 1.0, 2.0), Group([1, 5], 1, 3.0), Group([4], 2, 9.0)],
        {},
    )


def test_what_is_given_up_and_why() -> None:
    same = failure("ValueError", "ValueError in keep: no")
    decision = decide(
        RetrySpec(max=2, on=("FAILED",)),
        [
            Failed(1, Group([1], 2), "FAILED", None),
            Failed(2, Group([2], 1), "FAILED", same, before=same),
            Failed(3, Group([3], 1), "FAILED", same, before=failure("ValueError", "another")),
            Failed(4, Group([4]), "CANCELLED", STOPPED),
            Failed(5, Group([5]), "OUT_OF_MEMORY", None),
        ],
    )
    assert [group.ranks for group in decision.again] == [[3]]
    assert decision.given_up == {
        1: "FAILED after 2 retries (retries.max)",
        2: "the same error twice: ValueError in keep: no",
        4: "CANCELLED is not tried again (retries.on)",
        5: "OUT_OF_MEMORY is not tried again (retries.on)",
    }


@pytest.mark.parametrize(
    "text",
    [
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=65.batch.",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=65.batch. Some of the step tasks have been OOM Killed.",
        "slurmstepd-n1: error: Exceeded job memory limit",
    ],
)
def test_how_slurm_says_that_memory_ran_out(text: str) -> None:
    assert looks_out_of_memory(text)


def slurm(**settings: Any) -> SlurmSpec:
    return SlurmSpec(type="slurm", **settings)


def test_more_memory_and_time_however_they_were_asked_for() -> None:
    more = Group([1], 1, memory_scale=2.0, time_scale=1.5)
    assert scaled(slurm(), Group([1]), Defaults()) == slurm()
    assert scaled(slurm(), more, Defaults(512, 600)).mem_per_cpu_gb == 1.0
    assert scaled(slurm(), more, Defaults(512, 600)).time == "0-00:15:00"
    again = scaled(slurm(sbatch={"mem": "4G", "time": "1:00:00"}), more, Defaults())
    assert again.sbatch == {"mem": "8192M", "time": "0-01:30:00"}
    assert scaled(slurm(), more, Defaults()) == slurm()  # Nobody knows what it had; said in the log.


def run_spec(*names: str) -> RunSpec:
    stages = [{"name": name, "pipeline": ["m:f"], "executor": {"type": "slurm", "mem_per_cpu_gb": 2}} for name in names]
    return RunSpec.model_validate({"name": "run", "run_dir": "/run", "cwd": "/", "stages": stages})


def test_a_retry_can_change_how_a_run_is_run_but_not_what_it_does() -> None:
    spec = run_spec("a", "b")
    changed = changed_spec(spec, ["executor.mem_per_cpu_gb=8", "retry_seconds=5"], "b")
    assert [stage.executor.mem_per_cpu_gb for stage in changed.stages] == [2, 8]  # type: ignore[union-attr]
    assert changed.retry_seconds == 5
    for assignment in ("tasks=7", "pipeline.0=m:g", "nonsense=1", "name=x"):
        with pytest.raises(StaggerError, match="a run keeps its"):
            changed_spec(spec, [assignment], None)
    with pytest.raises(StaggerError, match="mem_per_cpu_gb"):
        changed_spec(spec, ["executor.mem_per_cpu_gb=lots"], None)
    with pytest.raises(StaggerError, match="There is no stage 'c'"):
        changed_spec(spec, ["executor.time=5"], "c")


def completion(rank: int, job: str, **values: Any) -> dict[str, Any]:
    record = {"rank": rank, "job": job, "restart": 0, "script_started": 0.0, "delay_s": 10.0, "ended": 100.0}
    return {**record, "cpu_s": 40.0, "peak_rss_mb": 800, "retried": {"waited_s": 3.0}, **values}


def test_efficiency_is_of_jobs_and_says_what_would_have_been_enough() -> None:
    records = [
        completion(0, "1_0"),
        completion(1, "1_0", ended=200.0, peak_rss_mb=1000),  # Packed: the same job, the same delay.
        completion(2, "1_1", ended=50.0),
    ]
    resources = {"cpus_per_task": 2, "mem_per_cpu_gb": 4.0, "time": "1:00:00"}
    found = efficiency(records, resources)
    assert found["jobs"] == 2
    assert found["cpu"] == {"used_s": 120.0, "asked_s": 500.0, "share": 0.24}
    assert found["memory"] == {"peak_mib": 1000, "asked_mib": 8192.0, "share": 0.122}
    assert found["time"] == {"longest_s": 200.0, "limit_s": 3600, "share": 0.056}
    assert (found["asleep_s"], found["waiting_s"]) == (20.0, 9.0)
    assert found["enough"] == {"mem_per_cpu_gb": 0.7, "time": "0-00:05:00"}
    assert sentences(found)[0].startswith("used 24% of the processors' time, 1,000 MiB of 8,192 MiB (12%) at most")
    unknown = efficiency(records, {"cpus_per_task": 1, "mem_per_cpu_gb": None, "time": None})
    assert unknown["memory"]["share"] is unknown["time"]["share"] is None
    assert "no limit that was asked for" in sentences(unknown)[0]
    assert efficiency([], resources) == {}
    assert sentences({}) == []


def test_what_retries_may_name_is_how_slurms_states_count() -> None:
    """One table decides (slurm/states.py): an end that no state counts as could never be retried."""
    assert set(RetrySpec().on) <= {state.counts_as for state in STATES.values()}
