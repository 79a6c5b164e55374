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


#: Reasons of queued jobs that pass by themselves (squeue(1), JOB REASON CODES), as `_plain` writes them.
ORDINARY = frozenset(
    {
        "none",
        "begintime",
        "burstbufferresources",
        "burstbufferstagein",
        "cleaning",
        "dependency",
        "jobarraytasklimit",
        "licenses",
        "priority",
        "prolog",
        "reservation",
        "resources",
        "scheddefer",
        "waitingforscheduling",
    }
)

#: Patterns of other reasons, as `_plain` writes them, and what they mean. `{job}` is the job's id.
REASONS = (
    ("jobhelduser", "the job is held; release it with: scontrol release {job}"),
    ("jobheldadmin", "an administrator has held the job; ask them to release it"),
    ("held|hold|maxrequeue", "Slurm could not start the job, and holds it; release it with: scontrol release {job}"),
    ("badconstraints", "no node has what the job requests"),
    ("dependencyneversatisfied", "it depends on a job that is gone, so it never starts"),
    ("invalidaccount|accountnotallowed", "its account is not valid here (executor.account)"),
    ("invalidqos|qosnotallowed", "its QOS is not valid here (executor.qos)"),
    ("partitiondown|partitioninactive", "its partition starts no jobs now"),
    ("partitiontimelimit|maxwall", "it requests more time than is allowed (executor.time)"),
    ("partitionnodelimit", "it requests more nodes than its partition allows"),
    ("reqnodenotavail|nodedown|frontenddown|nodesrequired", "nodes that it needs are down, drained or reserved"),
    ("reservation", "its reservation is gone, or not valid"),
    ("(mins|minutes|rawusage|usage)", "the account or QOS has used up its share of time"),
    ("perjob|pernode|min(cpu|gpu|gres|mem|node|billing|unknown)", "it requests more, or less, than a limit allows"),
    ("^(assoc|qos).*(jobs?limit|jobs|resourcelimit)", "other jobs of the user, account or QOS must end first"),
    ("^(assoc|qos)", "other jobs that count against the same limit must end first"),
)


def why_waiting(reason: str, job: str) -> str:
    """What a queued job with this reason waits for, and what to do; empty if the wait is ordinary.

    >>> why_waiting("launch failed requeued held", "12")
    'Slurm could not start the job, and holds it; release it with: scontrol release 12'
    >>> why_waiting("Priority", "12"), why_waiting("SomethingNew", "12")
    ('', 'waiting for SomethingNew')
    """
    plain = _plain(reason)
    if "maintenance" in reason.lower():  # After the comma of ReqNodeNotAvail.
        return "nodes are reserved for maintenance; a job that ends before it begins can start now (executor.time)"
    if plain in ORDINARY or not plain:
        return ""
    found = (words.format(job=job) for pattern, words in REASONS if re.search(pattern, plain))
    return next(found, f"waiting for {reason}")


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
