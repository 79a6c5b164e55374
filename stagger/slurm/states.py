"""Slurm's job states, in one table (squeue(1) and sacct(1), JOB STATE CODES). Pure."""

from __future__ import annotations

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
    ended = (known for known in STATES if has_ended(known) and state and known.startswith(state))
    return next(ended, state)
