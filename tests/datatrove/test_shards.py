"""An output for each shard changes nothing that datatrove's blocks do; a commit for each shard is refused at launch."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.launch.dry_run import dry_run
from stagger.launch.launch import Wishes
from stagger.spec.load import load_file
from tests.datatrove.blocks import CASES, WRITE, read_by_stagger
from tests.datatrove.both import Places, Stage

#: The cases in which stagger's reader and writer have blocks between them.
BETWEEN = {name: stages for name, stages in CASES.items() if read_by_stagger(stages)}


EACH_SHARD = "{stem}.jsonl"


def by_shard(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages, with an output for each shard."""
    writer = (WRITE[0], {**WRITE[1], "filename": EACH_SHARD})
    return tuple(
        Stage(stage.tasks, tuple(writer if step[0] == "write" else step for step in stage.steps)) for stage in stages
    )


def joined(found: dict[str, Any], places: Places, tasks: int) -> dict[str, Any]:
    """The outputs, with those of a rank's shards as one, as a stage writes them without `{stem}`."""
    shards = sorted(path.stem for path in (places.materials / "documents").iterdir())
    whole = {name: value for name, value in found.items() if not name.startswith("documents/")}
    for rank in range(tasks):
        documents = [each for stem in shards[rank::tasks] for each in found.get(f"documents/{stem}.jsonl", [])]
        if documents:
            whole[f"documents/{rank:05d}.jsonl"] = documents
    return whole


@pytest.mark.parametrize("name", BETWEEN)
def test_an_output_for_each_shard_holds_the_same_documents(
    name: str, places: Places, datatroves: dict[str, dict[str, Any]]
) -> None:
    stages = BETWEEN[name]
    found = places.run_yaml(by_shard(stages))
    assert joined(found, places, stages[0].tasks) == places.expected(name, stages, datatroves)


@pytest.mark.parametrize("name", BETWEEN)
def test_a_commit_for_each_shard_is_refused_at_launch(name: str, places: Places) -> None:
    file = places.pipeline_file(by_shard(BETWEEN[name]), commit="shard")
    with pytest.raises(StaggerError, match="commit: shard"):
        dry_run(load_file(str(file)), Wishes())
    assert not places.out("yaml").exists()
