"""An output for each shard changes nothing that datatrove's blocks do; a commit for each shard is refused at launch."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stagger.errors import RunFailed, StaggerError
from stagger.launch.dry_run import dry_run
from stagger.launch.launch import Wishes
from stagger.spec.load import load_file
from tests.datatrove.blocks import CASES, WRITE, Step, read_by_stagger
from tests.datatrove.both import Places, Stage, contents

#: The cases in which stagger's reader and writer have blocks between them.
BETWEEN = {name: stages for name, stages in CASES.items() if read_by_stagger(stages)}


EACH_SHARD = "{stem}.jsonl"

#: The cases whose blocks keep nothing from one document to the next.
STATELESS = {
    "C4Quality-sentences",
    "C4Paragraph",
    "FineWebQuality",
    "GopherRepetition",
    "Language-label-only",
    "FastTextClassifier",
    "FTFY",
    "SymbolLines",
    "TokensCounter",
    "LengthCounter",
}


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
def test_a_commit_for_each_shard_is_refused_at_launch_or_resumes_to_the_same_documents(
    name: str, places: Places, datatroves: dict[str, dict[str, Any]]
) -> None:
    stages = BETWEEN[name]
    if name not in STATELESS:
        with pytest.raises(StaggerError, match="commit: shard"):
            dry_run(load_file(str(places.pipeline_file(by_shard(stages), commit="shard"))), Wishes())
        assert not places.out("yaml").exists()
        return
    last = json.loads((places.materials / "documents" / "00002.jsonl").read_text().splitlines()[-1])
    fail: Step = ("tests.datatrove.blocks:fail_once", {"document_id": last["id"], "flag": str(places.folder / "flag")})
    failing = tuple(Stage(stage.tasks, (stage.steps[0], fail, *stage.steps[1:])) for stage in by_shard(stages))
    with pytest.raises(RunFailed):
        places.run_yaml(failing, commit="shard")
    assert "documents/00000.jsonl" in contents(places.out("yaml"))  # The shard before is committed.
    found = places.run_yaml(failing, commit="shard")
    assert joined(found, places, stages[0].tasks) == places.expected(name, stages, datatroves)
