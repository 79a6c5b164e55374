"""Parsing of Slurm's output, recorded from many versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagger.slurm import answers, command, sbatch, states
from stagger.slurm.answers import Limits, QueuedJob
from tests.conftest import DATA

RECORDED = DATA / "slurm"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def versions(name: str) -> list[str]:
    """The versions of Slurm for which the file `name` was recorded."""
    return sorted(path.parent.name for path in RECORDED.glob(f"*/{name}"))


LIMITS = {
    "20.11": Limits(version="20.11.6"),  # The excerpt has no limits: Slurm's defaults.
    "21.08": Limits(500, 10_000, def_mem_per_cpu=4000, version="21.08.5", enforced=True),
    "22.05": Limits(10_001, 50_000, def_mem_per_cpu=100, version="22.05.8"),
    "23.02": Limits(1001, 10_000, version="23.02.7"),
    "24.05": Limits(40_001, 200_000, version="24.05.2", enforced=True),
    "24.11": Limits(10_001, 50_000, def_mem_per_cpu=100, version="24.11.5"),
    "25.05": Limits(11_000, 65_000, version="25.05.5"),
    "25.11": Limits(1001, 10_000, version="25.11.4"),
}


@pytest.mark.parametrize("version", versions("config.txt"))
def test_limits_are_read_from_any_version(version: str) -> None:
    assert answers.parse_config(recorded(f"{version}/config.txt")) == LIMITS[version]


def test_limits_are_the_defaults_where_slurm_does_not_say() -> None:
    assert answers.parse_config("") == Limits(1001, 10_000)


STATES: dict[str, dict[tuple[str, int | None], str]] = {
    "20.11": {("700", 0): "COMPLETED", ("700", 1): "OUT_OF_MEMORY", ("700", 4): "PENDING"},
    "21.08": {("700", 0): "COMPLETED", ("700", 1): "TIMEOUT"},  # It had been preempted before.
    "22.05": {("75767", None): "CANCELLED", ("75766", 1): "FAILED", ("75766", 2): "CANCELLED", ("75766", 3): "FAILED"},
    "24.11": {("344", None): "CANCELLED", ("343", 1): "FAILED", ("343", 2): "CANCELLED", ("343", 4): "COMPLETED"},
    "23.11": {("2699001", None): "CANCELLED", ("2699102", None): "OUT_OF_MEMORY", ("2699103", None): "NODE_FAIL"},
}


@pytest.mark.parametrize("version", versions("sacct.txt"))
def test_accounting_is_read_from_any_version(version: str) -> None:
    head, *lines = recorded(f"{version}/sacct.txt").splitlines()
    columns = head.split("|")
    if "State" not in columns:
        columns, lines = ["JobID", "State"], [head, *lines]
    rows = [line.split("|") for line in lines]
    text = "\n".join(f"{row[columns.index('JobID')]}|{row[columns.index('State')]}" for row in rows)
    found = answers.parse_accounting(text)
    assert {job: found[job].state for job in STATES[version]} == STATES[version]
    assert {job.state for job in found.values()} <= set(states.STATES)


def test_a_cut_state_is_known_all_the_same() -> None:
    assert answers.parse_accounting("9_1|OUT_OF_ME+|0:125|n1") == {("9", 1): ("OUT_OF_MEMORY", 125, True)}


@pytest.mark.parametrize("version", versions("squeue.txt"))
def test_a_queue_is_read_from_any_version(version: str) -> None:
    rows = [line.split("|", 6) for line in recorded(f"{version}/squeue.txt").splitlines()]
    jobs = answers.parse_queue("\n".join("|".join([*row[:4], "N/A", *row[5:], "/s/.a.sh"]) for row in rows))
    assert len(jobs) == len(rows)
    for job, row in zip(jobs, rows, strict=True):
        index = int(row[1]) if row[1].isdigit() else None
        assert (job.job_id, job.index, job.state, job.reason, job.name) == (row[0], index, row[2], row[5], row[6])
        assert job.seconds is not None
    assert not all(states.has_ended(job.state) for job in jobs)


def test_a_queue_without_an_answer_is_empty_and_a_time_may_be_unknown() -> None:
    assert answers.parse_queue("") == []
    (job,) = answers.parse_queue("1|3|PENDING|INVALID|N/A|Priority|a|b|/a/b.sh\n")
    assert job == QueuedJob("1", 3, "PENDING", "a|b", None, "Priority", None, "/a/b.sh")


def test_a_hundred_thousand_jobs_are_read() -> None:
    text = "".join(
        f"9001|{index}|RUNNING|1:02:03|2026-11-29T10:45:28|None|keep-0a1b|/logs/keep.sh\n" for index in range(100_000)
    )
    assert len(answers.parse_queue(text)) == 100_000
    text = "".join(f"9001_{index}|COMPLETED|0:0|n1\n" for index in range(100_000))
    assert len(answers.parse_accounting(text)) == 100_000


@pytest.mark.parametrize(
    ("printed", "job"),
    [
        ("Submitted batch job 12\n", ("12", "")),
        ("Submitted batch job 12 on cluster east\n", ("12", "east")),
        ("12\n", ("12", "")),
        ("12;east\n", ("12", "east")),
        ("sbatch: a word of the cluster's\nSubmitted batch job 12\n", ("12", "")),
        ("sbatch: lua: rejected\n", None),
    ],
)
def test_a_job_id_is_read_from_whatever_sbatch_prints(printed: str, job: tuple[str, str] | None) -> None:
    assert answers.parse_submitted(printed) == job


@pytest.mark.parametrize(
    "text", ["", "UNLIMITED", "INVALID", "Partition_Limit", "1:2:3:4", "-1", "1-", "a-1", "NOT_SET"]
)
def test_what_is_no_time_is_none(text: str) -> None:
    assert answers.parse_time(text) is None


@pytest.mark.parametrize("text", ["", "much", "4GG", "-1"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount of memory"):
        answers.parse_memory(text)


def refusals() -> list[tuple[str, str]]:
    """(message of sbatch, the key that the error to the user must name)."""
    found = []
    for path in sorted(RECORDED.glob("*/refusals.txt")):
        for part in path.read_text().split("# ")[1:]:
            key, _, words = part.partition("\n")
            found.append((words, key))
    return found


@pytest.mark.parametrize(("words", "key"), refusals())
def test_a_refusal_names_the_key_to_change(words: str, key: str) -> None:
    sentence = str(sbatch.Refused(sbatch.said(words)))
    assert words.strip().splitlines()[0].removeprefix("sbatch: ").removeprefix("error: ").rstrip(".") in sentence
    for word in key.split(" in "):
        assert word in sentence.partition("change ")[2]
    assert "\n" not in sentence


@pytest.mark.parametrize("words", recorded("any/passing.txt").splitlines())
def test_what_passes_is_known(words: str) -> None:
    assert command.BUSY.search(words)
    assert not any(command.BUSY.search(refused) for refused, _ in refusals())


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*/sbatch*.txt")), ids=str)
def test_the_job_id_of_any_version(path: Path) -> None:
    assert (answers.parse_submitted(path.read_text()) or ("", ""))[0].isdecimal()


def test_limits_of_users_count_where_they_are_enforced() -> None:
    for value, enforced in (
        ("associations,limits,qos", True),
        ("safe", True),
        ("associations", False),
        ("none", False),
    ):
        assert answers.parse_config(f"AccountingStorageEnforce = {value}").enforced is enforced


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("JobHeldAdmin", "administrator"),
        ("launch failed requeued held", "scontrol release 7"),
        ("PartitionDown", "partition"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "down, drained or reserved"),
        ("AssocMaxJobsLimit", "must end first"),
        ("QOSMaxCpuPerUserLimit", "must end first"),
        ("AssocGrpCPUMinutesLimit", "share of time"),
        ("QOSMaxWallDurationPerJobLimit", "executor.time"),
        ("QOSMaxGRESPerJob", "than a limit of its account"),
        ("InvalidQOS", "executor.qos"),
        ("DependencyNeverSatisfied", "depends on a job that is gone"),
        ("ReservationDeleted", "reservation"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_a_reason_that_does_not_pass_by_itself_is_explained(reason: str, words: str) -> None:
    assert words in states.why_waiting(reason, "7")


#: Reasons of slurm.h (Slurm 22.05 to 24.11), as squeue prints them, by when their jobs start.
STARTS = {
    "never": """BadConstraints PartitionConfig PartitionNodeLimit PartitionTimeLimit MaxMemPerLimit InvalidAccount
        InvalidQOS AccountNotAllowed QOSNotAllowed DependencyNeverSatisfied DeadLine ReservationDeleted
        AssocMaxCpuPerJobLimit AssocMaxNodePerJobLimit AssocMaxWallDurationPerJobLimit QOSMaxCpuPerJobLimit
        QOSMaxNodePerJobLimit QOSMaxMemoryPerJob QOSMaxGRESPerJob QOSMaxCpuPerNode QOSMaxGRESPerNode
        QOSMaxWallDurationPerJobLimit QOSMinCpuNotSatisfied QOSMinGRES QOSMinMemory""",
    "by hand": """JobHeldUser JobHeldAdmin JobHoldMaxRequeue PartitionDown PartitionInactive NodeDown FrontEndDown
        BurstBufferOperation QOSUsageThreshold AssocGrpCPUMinutesLimit QOSTimeLimit
        ReqNodeNotAvail,_UnavailableNodes:n1""",
    "later": """AssocMaxJobsLimit AssocGrpJobsLimit AssocGrpCpuLimit AssocGrpMemLimit QOSGrpNodeLimit
        QOSMaxJobsPerUserLimit QOSMaxCpuPerUserLimit QOSMaxJobsPerAccountLimit MaxCpuPerAccount AccountingPolicy
        ReqNodeNotAvail,_Reserved_for_maintenance SomethingNew""",
}


@pytest.mark.parametrize(("starts", "reasons"), STARTS.items())
def test_a_reason_tells_whether_its_job_ever_starts(starts: str, reasons: str) -> None:
    found = {reason: states.reason_of(reason, "7") for reason in reasons.split()}
    assert {reason: why and why.starts for reason, why in found.items()} == dict.fromkeys(found, starts)
    assert {reason for reason in found if states.never_starts(reason)} == (set(found) if starts == "never" else set())


@pytest.mark.parametrize(
    "reason", ["None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency", ""]
)
def test_an_ordinary_wait_needs_no_words(reason: str) -> None:
    assert states.why_waiting(reason, "7") == ""
