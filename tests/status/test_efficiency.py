"""Resource usage versus request."""

from __future__ import annotations

from typing import Any

from stagger.status.efficiency import efficiency, sentences
from tests.kit.records import table_of


def completed(rank: int, job: str, **more: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "rank": rank,
        "job": job,
        "restart": 0,
        "script_started": 1000.0,
        "delay_s": 20.0,
        "ended": 1100.0,
    }
    record |= {"host": "n1", "cpu_s": 60.0, "peak_rss_mb": 900, "retried": {"requests": {}, "waited_s": 2.5}, **more}
    return {**record, "started": record["ended"] - 50}


def test_what_was_used_and_what_would_have_been_enough() -> None:
    """Ranks of one job share its time and its delay, but each has its own CPU seconds."""
    records = [completed(0, "7_0"), completed(1, "7_0", ended=1200.0), completed(2, "7_1", peak_rss_mb=1600)]
    found = efficiency(table_of(records), {"cpus_per_task": 2, "mem_per_cpu_gb": 4.0, "time": "1:00:00"})
    assert found == {
        "jobs": 2,
        "cpu": {"used_s": 180.0, "asked_s": 600.0, "share": 0.3},
        "memory": {"peak_mib": 1600, "asked_mib": 8192.0, "share": 0.195},
        "time": {"longest_s": 200.0, "limit_s": 3600, "share": 0.056},
        "asleep_s": 40.0,
        "waiting_s": 7.5,
        "enough": {"mem_per_cpu_gb": 1.0, "time": "0-00:05:00"},
    }
    text = " ".join(sentences(found))
    assert "CPU time used 30%" in text
    assert "sufficient: mem_per_cpu_gb: 1.0, time: 0-00:05:00" in text


def test_efficiency_of_a_stage_that_asked_for_nothing_or_did_nothing() -> None:
    found = efficiency(table_of([completed(0, "7_0")]), {"cpus_per_task": 1, "mem_per_cpu_gb": None, "time": None})
    assert (found["memory"]["share"], found["time"]["share"]) == (None, None)
    assert "(no limit requested)" in " ".join(sentences(found))
    assert efficiency(table_of([]), {}) == {}
    assert sentences({}) == []


def completion(rank: int, job: str, **values: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "rank": rank,
        "job": job,
        "restart": 0,
        "script_started": 0.0,
        "delay_s": 10.0,
        "ended": 100.0,
    }
    record |= {"host": "n1", "cpu_s": 40.0, "peak_rss_mb": 800, "retried": {"requests": {}, "waited_s": 3.0}, **values}
    return {"started": record["ended"] - 30, **record}


def test_efficiency_is_of_jobs_and_says_what_would_have_been_enough() -> None:
    records = [
        completion(0, "1_0"),
        completion(1, "1_0", ended=200.0, peak_rss_mb=1000),  # Packed: the same job and delay.
        completion(2, "1_1", ended=50.0),
    ]
    resources = {"cpus_per_task": 2, "mem_per_cpu_gb": 4.0, "time": "1:00:00"}
    found = efficiency(table_of(records), resources)
    assert found["jobs"] == 2
    assert found["cpu"] == {"used_s": 120.0, "asked_s": 500.0, "share": 0.24}
    assert found["memory"] == {"peak_mib": 1000, "asked_mib": 8192.0, "share": 0.122}
    assert found["time"] == {"longest_s": 200.0, "limit_s": 3600, "share": 0.056}
    assert (found["asleep_s"], found["waiting_s"]) == (20.0, 9.0)
    assert found["enough"] == {"mem_per_cpu_gb": 0.7, "time": "0-00:05:00"}
    assert sentences(found)[0].startswith("CPU time used 24%, peak memory 1,000 MiB of 8,192 MiB (12%), longest job")
    unknown = efficiency(table_of(records), {"cpus_per_task": 1, "mem_per_cpu_gb": None, "time": None})
    assert unknown["memory"]["share"] is unknown["time"]["share"] is None
    assert "(no limit requested)" in sentences(unknown)[0]
    assert efficiency(table_of([]), resources) == {}
    assert sentences({}) == []


def test_a_job_that_runs_ranks_at_once_has_the_processors_and_the_memory_of_all_of_them() -> None:
    beside = [completion(rank, "1_0", started=10.0, ended=60.0, host="n1" if rank < 2 else "n2") for rank in range(4)]
    later = completion(4, "1_0", started=60.0, peak_rss_mb=900)
    asked = {"cpus_per_task": 2, "mem_per_cpu_gb": 1.0, "time": None, "ranks_at_once": 2, "nodes_per_job": 2}
    found = efficiency(table_of([*beside, later]), asked)
    assert found["cpu"] == {"used_s": 200.0, "asked_s": 800.0, "share": 0.25}  # 100 s, 8 processors.
    assert found["memory"] == {"peak_mib": 1600, "asked_mib": 4096.0, "share": 0.391}  # On each node.
    assert found["enough"]["mem_per_cpu_gb"] == 0.6  # Of one rank: 900 MiB on two processors.


def test_a_job_of_whole_nodes_counts_with_the_processors_that_its_ranks_used() -> None:
    records = [completion(rank, "1_0", started=10.0) for rank in range(3)]
    found = efficiency(
        table_of(records), {"cpus_per_task": 2, "mem_per_cpu_gb": None, "time": None, "ranks_at_once": "auto"}
    )
    assert (found["jobs"], found["cpu"]["asked_s"], found["memory"]["asked_mib"]) == (1, 600.0, None)


def test_gpus_are_busy_by_the_time_of_their_tasks_and_full_by_the_fullest() -> None:
    half = {"peak_mib": 40000, "total_mib": 80000, "busy": 0.5}
    full = {"peak_mib": 60000, "total_mib": 80000, "busy": 0.9}
    records = [completion(0, "7_0", gpus=half), completion(1, "7_1", gpus=full, started=10.0), completion(2, "7_2")]
    found = efficiency(table_of(records), {"cpus_per_task": 1})
    assert found["gpus"] == {"peak_mib": 60000, "total_mib": 80000, "share": 0.75, "busy": 0.8}
    assert sentences(found)[2] == "GPU memory at most 60,000 MiB of 80,000 MiB (75%), GPUs busy 80% of the time"
    assert "gpus" not in efficiency(table_of(records[2:]), {"cpus_per_task": 1})
