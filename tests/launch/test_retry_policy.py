"""The retry policy: which failed ranks are retried, and with which resources."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.launch.retry_policy import Decision, avoid, bad_nodes, decide
from stagger.rundir.launch_records import Group
from stagger.rundir.records import Failure
from stagger.slurm.states import STATES
from stagger.spec.executors import RetrySpec
from stagger.status.failed import Failed, NotStarted, looks_out_of_memory

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
        ("FAILED", WARNED, "TIMEOUT", "TIMEOUT"),  # Its job ended after Slurm's warning signal.
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
        # In a packed job, the job's end is not that of each rank.
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
        4: "CANCELLED is not retried (retries.on)",
        5: "OUT_OF_MEMORY is not retried (retries.on)",
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


def test_what_retries_may_name_is_how_slurms_states_count() -> None:
    """Each end in the default `retries.on` is the `counts_as` of a state in slurm/states.py: others never match."""
    assert set(RetrySpec().on) <= {state.counts_as for state in STATES.values()}


def on(node: str, kind: str = "OSError", step: str | None = "read", **more: Any) -> Any:
    """How a rank failed on a node: with an error of its own."""
    return {"failure": {**failure(kind, step=step), "host": node}, **more}


def unset(node: str) -> Any:
    """How a rank failed whose environment could not be set up."""
    return {"failure": None, "state": "FAILED", "not_started": NotStarted(node, "the environment could not be set up")}


SAME = {**failure("OSError", step="read"), "host": "n2"}


@pytest.mark.parametrize(
    ("failed", "succeeded", "bad"),
    [
        ([unset("n1"), unset("n1")], {"n2": 5}, ["n1"]),
        ([unset("n1"), unset("n1")], {"n1": 9, "n2": 5}, ["n1"]),  # It broke while the launch ran.
        ([unset("n1")], {"n2": 5}, []),  # One rank is not several.
        ([unset("n1"), unset("n1"), unset("n2"), unset("n2")], {"n3": 1}, ["n1", "n2"]),
        ([unset("n1"), unset("n1"), unset("n2")], {"n3": 1}, []),
        ([on("n1"), on("n1")], {"n2": 5}, ["n1"]),
        ([on("n1"), on("n1")], {"n1": 2, "n2": 5}, []),  # As many succeeded there.
        ([on("n1"), on("n1"), on("n2")], {"n2": 5}, []),  # Ranks fail so on nodes that work, too.
        ([on("n1"), on("n1", "KeyError")], {"n2": 5}, []),  # Not the same error.
        ([on("n1"), on("n1", step="write")], {"n2": 5}, []),
        ([on("n1"), on("n1"), on("n2", "KeyError")], {"n2": 5}, ["n1"]),
        ([on("n1", before=SAME), on("n1", before=SAME)], {"n2": 5}, []),  # They failed so elsewhere before.
        ([on("n1", before={**SAME, "host": "n1"})] * 2, {"n2": 5}, ["n1"]),
        ([on("n1", "MemoryError")] * 2, {"n2": 5}, []),  # They need more memory, not another node.
        ([{"failure": {**STOPPED, "host": "n1"}, "state": "PREEMPTED"}] * 2, {"n2": 5}, []),
        ([{"failure": {**STOPPED, "host": "n1"}, "state": "CANCELLED"}] * 2, {"n2": 5}, []),
        ([{"failure": None, "state": "NODE_FAIL"}] * 2, {"n2": 5}, []),  # Slurm itself takes the node down.
        ([], {"n1": 5}, []),
    ],
)
def test_which_nodes_are_bad(failed: list[dict[str, Any]], succeeded: dict[str, int], bad: list[str]) -> None:
    ranks = [Failed(rank, FIRST, **{"state": None, **one}) for rank, one in enumerate(failed)]
    assert sorted(bad_nodes(ranks, succeeded)) == bad


@pytest.mark.parametrize(
    ("avoided", "broken", "succeeded", "untried", "still", "bad"),
    [
        ([], ["n1"], {"n2": 1}, False, [], ["n1"]),
        ([], ["n1"], {}, True, [], ["n1"]),
        ([], ["n1"], {}, False, [], []),  # Perhaps there is no other node.
        ([], ["n1", "n2"], {}, True, [], []),  # Ranks fail everywhere.
        ([], ["n1"], {"n1": 3}, False, [], []),  # No other node is known to work.
        (["n1"], [], {}, False, ["n1"], []),
        (["n1"], ["n2"], {"n3": 1}, False, ["n1"], ["n2"]),
        (["n1"], ["n1"], {"n3": 1}, False, ["n1"], []),
        (["n1"], ["n2"], {}, True, [], []),  # They fail on n2 as well: n1 is not to blame.
        (["n1"], ["n2"], {"n1": 1}, True, [], []),
        (["n1"], ["n2"], {"n2": 1}, True, ["n1"], []),
    ],
)
def test_some_node_is_always_left(
    avoided: list[str], broken: list[str], succeeded: dict[str, int], untried: bool, still: list[str], bad: list[str]
) -> None:
    failed = [
        Failed(rank, FIRST, "FAILED", None, not_started=NotStarted(node, "no Python"))
        for rank in range(2)
        for node in broken
    ]
    found = avoid(avoided, failed, succeeded, untried=untried)
    assert (found[0], sorted(found[1])) == (still, bad)
