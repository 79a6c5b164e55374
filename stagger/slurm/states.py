"""Slurm's job states, and the reasons for which jobs wait, in tables (squeue(1), sacct(1)). Pure."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Phase = Literal["queued", "active", "ended"]


class State(NamedTuple):
    """The meaning of a state. `counts_as` is the end, as in `retries.on`, of a rank that left no record of its own."""

    phase: Phase
    counts_as: str = ""


#: A state that Slurm has added since. To be careful, assume that the job's processes still run.
UNKNOWN = State("active")

#: A job that neither the controller nor accounting knows any more.
LOST = State("ended", "NODE_FAIL")

STATES = {
    "PENDING": State("queued"),
    "CONFIGURING": State("queued"),  # Its nodes are booting; nothing has started.
    "REQUEUED": State("queued"),
    "REQUEUE_FED": State("queued"),
    "REQUEUE_HOLD": State("queued"),
    "RESV_DEL_HOLD": State("queued"),
    "SPECIAL_EXIT": State("queued"),
    "RUNNING": State("active"),
    "COMPLETING": State("active"),
    "RESIZING": State("active"),
    "SIGNALING": State("active"),
    "STAGE_OUT": State("active"),
    "STOPPED": State("active"),
    "SUSPENDED": State("active"),
    "BOOT_FAIL": State("ended", "NODE_FAIL"),
    "CANCELLED": State("ended", "CANCELLED"),
    "COMPLETED": State("ended", "FAILED"),  # Without a completion record, exit status 0 is no success.
    "DEADLINE": State("ended", "TIMEOUT"),
    "FAILED": State("ended", "FAILED"),
    "LAUNCH_FAILED": State("ended", "LAUNCH_FAILED"),
    "NODE_FAIL": State("ended", "NODE_FAIL"),
    "OUT_OF_MEMORY": State("ended", "OUT_OF_MEMORY"),
    "PREEMPTED": State("ended", "PREEMPTED"),
    "RECONFIG_FAIL": State("ended", "RECONFIG_FAIL"),
    "REVOKED": State("ended", "REVOKED"),
    "TIMEOUT": State("ended", "TIMEOUT"),
}


#: When a waiting job starts: `never` as it is, `by hand` once somebody has acted, or `later`, by itself.
Starts = Literal["never", "by hand", "later"]


class Reason(NamedTuple):
    """What a reason of a waiting job means: when the job starts, and in words what it waits for, or what to do."""

    starts: Starts
    words: str


#: Reasons of queued jobs that pass by themselves (squeue(1), JOB REASON CODES), as `_plain` writes them.
ORDINARY = frozenset(
    {
        "none",
        "begintime",
        "burstbufferresources",
        "burstbufferstagein",
        "cleaning",
        "dependency",
        "fedjoblock",
        "jobarraytasklimit",
        "licenses",
        "maxpoweredupnodes",
        "mpiportsbusy",
        "priority",
        "prolog",
        "reservation",
        "resources",
        "scheddefer",
        "waitingforscheduling",
    }
)

#: Patterns of other reasons (slurm.h and squeue(1) of Slurm 20.11 to 24.11), as `_plain` writes them, and what they
#: mean. The first that matches counts. `{job}` is the job's id.
REASONS: tuple[tuple[str, Starts, str], ...] = (
    ("jobhelduser", "by hand", "the job is held; release it with: scontrol release {job}"),
    ("jobheldadmin", "by hand", "an administrator has held the job; ask them to release it"),
    (
        "held|hold|maxrequeue|joblaunchfailure|systemfailure",
        "by hand",
        "Slurm could not start the job, and holds it; release it with: scontrol release {job}",
    ),
    ("badconstraints|^constraints", "never", "no node has what the job requests"),
    (
        "partitionconfig",
        "never",
        "it requests more than its partition allows or its nodes have (executor.cpus_per_task, mem_per_cpu_gb, ...)",
    ),
    ("dependencyneversatisfied", "never", "it depends on a job that is gone"),
    ("deadline", "never", "its deadline has passed"),
    (
        "invalidaccount|accountnotallowed",
        "never",
        "its account is not valid here, or not in this partition (executor.account)",
    ),
    ("invalidqos|qosnotallowed", "never", "its QOS is not valid here, or not in this partition (executor.qos)"),
    ("partitiondown|partitioninactive", "by hand", "its partition starts no jobs until an administrator opens it"),
    ("partitiontimelimit|maxwall", "never", "it requests more time than is allowed (executor.time)"),
    ("partitionnodelimit", "never", "it requests more nodes than its partition allows, or has up"),
    (
        "reqnodenotavail|nodedown|frontenddown|nodesrequired",
        "by hand",
        "nodes that it needs are down, drained or reserved; it starts when they are back",
    ),
    ("reservation", "never", "its reservation is gone, or not valid (executor.sbatch)"),
    ("burstbufferoperation", "by hand", "its burst buffer failed; scontrol show job {job} says why"),
    (
        "perjob|pernode|maxmemperlimit|min(cpu|gpu|gres|mem|node|billing|unknown)|minnotsatisfied",
        "never",
        "it requests more, or less, than a limit of its account, QOS or partition allows",
    ),
    (
        "(mins|minutes|rawusage|usage|timelimit)",
        "by hand",
        "the account or QOS has used up its share of time; it starts when usage has decayed, or the limit is raised",
    ),
    ("^(assoc|qos).*(jobs?limit|jobs|resourcelimit)", "later", "other jobs of the user, account or QOS must end first"),
    ("^(assoc|qos|accountingpolicy|max)", "later", "other jobs that count against the same limit must end first"),
)


def reason_of(reason: str, job: str) -> Reason | None:
    """What a queued job with this reason waits for, and whether it starts; None if the wait is ordinary.

    >>> reason_of("launch failed requeued held", "12")
    Reason(starts='by hand', words='Slurm could not start the job, and holds it; release it with: scontrol release 12')
    >>> reason_of("Priority", "12"), reason_of("SomethingNew", "12")
    (None, Reason(starts='later', words='waiting for SomethingNew'))
    """
    plain = _plain(reason)
    if "maintenance" in reason.lower():  # After the comma of ReqNodeNotAvail.
        words = "nodes are reserved for maintenance; a job that ends before it begins can start now (executor.time)"
        return Reason("later", words)
    if plain in ORDINARY or not plain:
        return None
    for pattern, starts, words in REASONS:
        if re.search(pattern, plain):
            return Reason(starts, words.format(job=job))
    return Reason("later", f"waiting for {reason}")


def why_waiting(reason: str, job: str) -> str:
    """What a queued job with this reason waits for, and what to do; empty if the wait is ordinary."""
    found = reason_of(reason, job)
    return "" if found is None else found.words


def waits_for_jobs(reason: str) -> bool:
    """Whether a queued job with this reason waits for a limit on the number of jobs that run.

    >>> waits_for_jobs("AssocMaxJobsLimit"), waits_for_jobs("QOSGrpJobsLimit"), waits_for_jobs("AssocGrpCpuLimit")
    (True, True, False)
    """
    return re.match("(assoc|qos).*jobs?(limit|per)", _plain(reason)) is not None


def never_starts(reason: str) -> bool:
    """Whether a queued job with this reason never starts as it is.

    >>> never_starts("PartitionConfig"), never_starts("Resources")
    (True, False)
    """
    found = reason_of(reason, "")
    return found is not None and found.starts == "never"


def _plain(reason: str) -> str:
    """A reason as the tables above write it, without names of nodes after a comma: Slurm itself is not consistent."""
    return re.sub("[^a-z]", "", reason.partition(",")[0].lower())


def is_queued(state: str) -> bool:
    """Whether a job in this state has not started, or will start again."""
    return STATES.get(state, UNKNOWN).phase == "queued"


def has_ended(state: str) -> bool:
    """Whether a job in this state has ended for good. squeue still lists it for MinJobAge."""
    return STATES.get(state, UNKNOWN).phase == "ended"


def counts_as(state: str | None) -> str:
    """The end of a rank whose job was last seen in this state: CANCELLED, one of `retries.on`, or the state itself.

    >>> counts_as("BOOT_FAIL"), counts_as("COMPLETED"), counts_as(None)
    ('NODE_FAIL', 'FAILED', 'NODE_FAIL')
    """
    return LOST.counts_as if state is None else STATES.get(state, UNKNOWN).counts_as or state


def whole_name(state: str) -> str:
    """The full name of an ended state that sacct has truncated.

    >>> whole_name("OUT_OF_ME"), whole_name("RUNNING")
    ('OUT_OF_MEMORY', 'RUNNING')
    """
    if state in STATES or not state:
        return state
    return next((known for known in STATES if has_ended(known) and known.startswith(state)), state)
