"""Slurm's job states, in one table: squeue(1) and sacct(1), JOB STATE CODES. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Phase = Literal["queued", "active", "ended"]


class State(NamedTuple):
    """What a state means. `counts_as` is how a rank ended that left no record of its own, for `retries.on`."""

    phase: Phase
    counts_as: str = ""


#: A state that Slurm adds later has processes, or had some a moment ago: the careful reading.
UNKNOWN = State("active")

#: A job that is gone, and of which neither the controller nor accounting knows any more.
LOST = State("ended", "NODE_FAIL")

STATES = {
    "PENDING": State("queued"),
    "CONFIGURING": State("queued"),  # Its nodes boot; nothing has started.
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
    "COMPLETED": State("ended", "FAILED"),  # Exit status 0 without a completion record is no success.
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
    """Whether a job has not started, or will start again."""
    return STATES.get(state, UNKNOWN).phase == "queued"


def has_ended(state: str) -> bool:
    """Whether a job has ended for good; squeue lists it for MinJobAge more."""
    return STATES.get(state, UNKNOWN).phase == "ended"


def counts_as(state: str | None) -> str:
    """How a rank of a job in this last known state ended: CANCELLED, one of `retries.on`, or the state itself.

    >>> counts_as("BOOT_FAIL"), counts_as("COMPLETED"), counts_as(None)
    ('NODE_FAIL', 'FAILED', 'NODE_FAIL')
    """
    return LOST.counts_as if state is None else STATES.get(state, UNKNOWN).counts_as or state


def whole_name(state: str) -> str:
    """The name of an ended state that sacct has cut off.

    >>> whole_name("OUT_OF_ME"), whole_name("RUNNING")
    ('OUT_OF_MEMORY', 'RUNNING')
    """
    ended = (known for known in STATES if has_ended(known) and state and known.startswith(state))
    return next(ended, state)
