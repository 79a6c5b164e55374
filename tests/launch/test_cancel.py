"""`stagger cancel`, without a cluster."""

from __future__ import annotations

from stagger.launch.cancel import stages_behind
from tests.kit.records import spec


def test_who_waits_for_a_stage_also_by_way_of_others() -> None:
    run = spec({"type": "local"}, "a", "b", "c", "d", b=["a"], c=["b"])
    assert [stages_behind(run, stage) for stage in run.stages] == [["b", "c"], ["c"], [], []]
