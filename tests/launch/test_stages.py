"""Decisions on plain values: which stages start, and with which ranks."""

from __future__ import annotations

import pytest

from stagger.launch.stages import Standing, Start, Waiting, needed_outputs, next_start

DONE = Standing(2, done={0, 1})
HALF = Standing(2, done={0})


@pytest.mark.parametrize(
    ("upstream", "lost", "decision"),
    [
        (DONE, [], Start([1])),
        (HALF, [], Waiting(["a"])),
        (Standing(2, done={0}, active={1}), [], Waiting(["a"])),
        (DONE, ["a"], Waiting(["a"])),
        (HALF, ["a"], Waiting(["a"])),
        (DONE, ["b"], Start([1])),  # Its own lost outputs do not block its other ranks.
    ],
)
def test_a_stage_starts_when_what_it_reads_is_done_and_there(
    upstream: Standing, lost: list[str], decision: Start | Waiting
) -> None:
    standings = {"a": upstream, "b": Standing(3, ("a",), done={0}, active={2})}
    assert next_start("b", standings, lost, range(3)) == decision


def test_a_stage_that_is_done_does_not_care_for_lost_input() -> None:
    standings = {"a": DONE, "b": Standing(2, ("a",), done={0, 1})}
    assert next_start("b", standings, ["a"], range(2)) == Start([])


def test_only_wanted_ranks_start() -> None:
    assert next_start("a", {"a": Standing(9, done={1}, active={2})}, [], [1, 2, 3, 8]) == Start([3, 8])


def test_outputs_must_be_there_while_somebody_reads_them() -> None:
    """The outputs of the middle stage are needed; those that only a finished stage reads may be removed."""
    chain = {"a": DONE, "b": Standing(2, ("a",), done={0, 1}), "c": Standing(2, ("b",))}
    assert needed_outputs(["a"], chain) == []
    assert needed_outputs(["b"], chain) == ["b"]
    assert needed_outputs(["c"], chain) == ["b", "c"]
    assert needed_outputs(["a", "b", "c"], chain) == ["b", "c"]


def test_a_stage_that_is_not_done_yet_has_no_outputs_to_miss() -> None:
    assert needed_outputs(["b"], {"a": HALF, "b": Standing(2, ("a",))}) == ["b"]
