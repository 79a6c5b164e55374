"""Limits: a launch counts its end jobs, what they launch later, and the jobs there are already."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.executor.limits import NoRoom, check_limits
from stagger.slurm.room import Charge, SubmitLimit, limits_of, parse_usage, partition_qos, zero_limit
from stagger.spec.models import RunSpec
from tests.conftest import DATA

RECORDED = DATA / "slurm" / "22.05"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def limits(charge: Charge, of_partition: str = "", usage: str | None = None) -> dict[str, tuple[int, int]]:
    usage = recorded("assoc_mgr") if usage is None else usage
    found = limits_of(charge, recorded("assoc"), recorded("qos"), usage, of_partition)
    return {limit.name: (limit.most, limit.used) for limit in found}


OWN = "your MaxSubmitJobs in the account stagger"
ACCOUNT = "the GrpSubmitJobs of the account stagger"


def test_all_levels_of_limits_are_read_with_what_counts_against_them() -> None:
    assert limits(Charge("stagger", "cpu", "few")) == {
        OWN: (50, 4),
        ACCOUNT: (60, 4),
        "the GrpSubmitJobs of the QOS few": (30, 3),
        "the MaxSubmitJobsPerUser of the QOS few": (20, 3),
        "the MaxSubmitJobsPerAccount of the QOS few": (25, 3),
    }
    assert limits(Charge("stagger")) == {OWN: (50, 4), ACCOUNT: (60, 4)}
    assert limits(Charge("stagger"), of_partition="few").keys() == limits(Charge("stagger", qos="few")).keys()
    assert limits(Charge()) == {}  # The user's default account, root, has no limits.


def test_where_usage_is_not_shown_limits_count_all_the_same() -> None:
    assert limits(Charge("stagger", qos="few"), usage="")["the GrpSubmitJobs of the QOS few"] == (30, 0)
    assert limits(Charge(), usage="") == {OWN: (50, 0)}
    assert limits_of(Charge(), "", "", "", "") == []


def test_an_association_with_the_partition_precedes_one_without() -> None:
    associations = "stagger||normal|50\nstagger|cpu||7\nother|||3\n"
    for charge, most in ((Charge("stagger", "cpu"), 7), (Charge("stagger", "gpu"), 50), (Charge("other"), 3)):
        (limit,) = limits_of(charge, associations, "", "", "")
        assert limit.most == most


def test_a_default_qos_and_the_one_of_a_partition_are_known() -> None:
    (limit,) = limits_of(Charge("a"), "a||fast|\n", "fast||3|\nslow||2|\n", "", "")
    assert limit == SubmitLimit("the MaxSubmitJobsPerUser of the QOS fast", 3)
    assert partition_qos("   AllocNodes=ALL Default=YES QoS=N/A\n") == ""
    assert parse_usage("").accounts == {}


#: A limit in the recorded answer, the same as 0, and its name.
ZERO = {
    "none": ("", "", ""),
    "own": ("MaxJobs= MaxJobsAccrue= MaxSubmitJobs=50", "MaxJobs=0(0) X=50", "your MaxJobs in the account stagger"),
    "account": ("GrpJobsAccrue=N(0)\n    GrpSubmitJobs=60", "GrpJobs=0(0) X=60", "the GrpJobs of the account stagger"),
    "qos": ("MaxJobsAccruePU=N(0) MaxSubmitJobsPU=20", "MaxJobsPU=0(0) X=20", "the MaxJobsPU of the QOS few"),
}


@pytest.mark.parametrize(("before", "after", "found"), ZERO.values(), ids=ZERO)
def test_a_limit_of_no_jobs_is_found(before: str, after: str, found: str) -> None:
    text = recorded("assoc_mgr").replace("GrpJobs=N(0) ", "").replace("MaxJobsPU=N(0) ", "")
    assert before in text
    text = text.replace(before, after) if before else text
    assert zero_limit(Charge("stagger", qos="few"), text) == found
    assert zero_limit(Charge("root"), text) == ""  # Another account, in another QOS.
    assert zero_limit(Charge(), "") == ""


def spec(first: int = 4, second: int = 4, *, retries: bool = False, **executor: Any) -> RunSpec:
    slurm = {"type": "slurm", "account": "a", **executor}
    stages = [
        {"name": "first", "tasks": first, "pipeline": ["read_jsonl"], "executor": slurm},
        {"name": "second", "tasks": second, "pipeline": ["read_jsonl"], "executor": slurm, "depends": ["first"]},
    ]
    if retries:
        stages[0]["retries"] = {}
    return RunSpec.model_validate({"name": "p", "run_dir": "/run", "cwd": "/", "stages": stages})


Cluster = Callable[..., None]


@pytest.fixture
def a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Stand-ins for a cluster with these limits, and with `used` jobs of the user."""

    def make(submit: int = 1000, used: int = 0, **config: int) -> None:
        lines = {"MaxArraySize": 1001, "MaxJobCount": 10_000, "AccountingStorageEnforce": "limits", **config}
        shown = "\n".join(f"{key} = {value}" for key, value in lines.items())
        usage = f"ClusterName=c Account=a UserName=me(1) Partition= \n MaxSubmitJobs={submit}({used})"
        for name, text in (
            ("scontrol", f"[[ $2 == config ]] && echo '{shown}'; [[ $2 == assoc_mgr ]] && echo '{usage}'; true"),
            ("sacctmgr", f"[[ $4 == assoc ]] && echo 'a|||{submit}'; true"),
        ):
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_the_end_job_counts(a_cluster: Cluster) -> None:
    a_cluster(submit=5)
    check_limits(spec(), {"first": 4}, {})
    a_cluster(submit=4)
    with pytest.raises(
        StaggerError, match=r"first needs 5 jobs at once.*MaxSubmitJobs in the account a is 4: multiply"
    ):
        check_limits(spec(), {"first": 4}, {})


def test_a_stage_that_starts_later_counts_with_the_end_job_that_launches_it(a_cluster: Cluster) -> None:
    a_cluster(submit=5)
    with pytest.raises(StaggerError, match="The stage second needs 6 jobs at once, its end job and the one before"):
        check_limits(spec(), {"first": 4}, {"second": 4})
    check_limits(spec(nodes_submit=False), {"first": 4}, {"second": 4})  # A command launches it, not a job.
    a_cluster(submit=6)
    check_limits(spec(), {"first": 4}, {"second": 4})


def test_a_retry_of_all_ranks_counts_with_the_end_job_that_launches_it(a_cluster: Cluster) -> None:
    a_cluster(submit=5)
    with pytest.raises(StaggerError, match="A retry of first needs 6 jobs at once"):
        check_limits(spec(retries=True), {"first": 4}, {})
    check_limits(spec(retries=True, nodes_submit=False), {"first": 4}, {})


def test_the_jobs_there_are_count_until_they_end(a_cluster: Cluster) -> None:
    a_cluster(submit=6, used=2)
    with pytest.raises(
        NoRoom, match=r"needs 5 jobs.* is 6, and 2 jobs count against it now: wait until some have ended"
    ):
        check_limits(spec(), {"first": 4}, {})
    a_cluster(submit=6, used=1)
    check_limits(spec(), {"first": 4}, {})


def test_what_can_never_be_is_said_before_what_has_to_wait(a_cluster: Cluster) -> None:
    a_cluster(submit=6, used=2)
    with pytest.raises(StaggerError, match="The stage second needs 11 jobs at once"):
        check_limits(spec(second=9), {"first": 4}, {"second": 9})


def test_the_limits_of_the_cluster_count_for_later_stages_too(a_cluster: Cluster) -> None:
    a_cluster(MaxJobCount=8)
    with pytest.raises(StaggerError, match=r"The stage second needs 11 jobs at once.*the cluster's MaxJobCount is 8"):
        check_limits(spec(second=9), {"first": 4}, {"second": 9})
    a_cluster(MaxArraySize=3)
    with pytest.raises(StaggerError, match=r"executor.workers is 2, but the run needs 3 arrays"):
        check_limits(spec(second=9, workers=2), {"first": 4}, {"second": 9})


def test_packed_jobs_count_once_and_limits_that_are_not_enforced_do_not(a_cluster: Cluster) -> None:
    a_cluster(submit=4)
    check_limits(spec(ranks_per_job=2), {"first": 4}, {"second": 4})
    a_cluster(submit=1, AccountingStorageEnforce=0)
    check_limits(spec(), {"first": 4}, {"second": 4})
