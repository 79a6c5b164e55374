"""Runs with steps of datatrove: their readers leave out empty texts, and a deduplication's stages read alike."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from stagger import ReadJsonl, StaggerError
from stagger.launch.plans import Pipeline
from stagger.plan.datatrove_steps import DATATROVE, DEDUP, uses
from stagger.spec.load import load_file

STEPS = """
import stagger
from datatrove.pipeline.dedup.exact_dedup import ExactDedupFilter, ExactDedupSignature
def signatures(data, rank, world_size):
    return helper().run(data, rank, world_size)
def helper():
    return ExactDedupSignature("sig")
class Removing:
    def __call__(self, data, rank, world_size):
        return ExactDedupFilter("dups").run(data, rank, world_size)
def minhash(data, rank, world_size):
    from datatrove.pipeline.dedup.minhash import MinhashDedupFilter
    return MinhashDedupFilter("remove").run(data, rank, world_size)
def media(data, rank, world_size):
    from datatrove.data import Media
    for document in data:
        yield document
def plain(data, rank, world_size):
    for document in data:
        stagger.count("seen")
        yield document
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Creates the stages of a pipeline file, as a launch does: one for each of the given pipelines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "dt_steps.py").write_text(STEPS)
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")

    def create(*pipelines: list[Any], **keys: Any) -> Pipeline:
        # fsspec keeps file systems: a relative folder would be that of an earlier test.
        pipelines = json.loads(json.dumps(pipelines).replace('"link"', json.dumps(str(tmp_path / "link"))))
        stages = [{"name": f"s{n}", "tasks": 1, "pipeline": steps, **keys} for n, steps in enumerate(pipelines)]
        stages[-1].pop("shard_by", None)
        (tmp_path / "p.yaml").write_text(json.dumps({"name": "x", "run_dir": "run", "stages": stages}))
        return Pipeline.create(load_file(str(tmp_path / "p.yaml")))

    return create


def reader(path: str = "in", **params: Any) -> dict[str, Any]:
    return {"read_jsonl": {"path": path, **params}}


def test_steps_of_datatrove_are_known_by_what_they_name(made: Any) -> None:
    import dt_steps  # type: ignore[import-not-found]
    from datatrove.pipeline.filters import LambdaFilter

    for step in (dt_steps.signatures, dt_steps.Removing(), dt_steps.Removing, functools.partial(dt_steps.signatures)):
        assert uses(step, DATATROVE)
        assert uses(step, DEDUP)
    for step in (LambdaFilter(lambda document: True), dt_steps.media):
        assert uses(step, DATATROVE)
        assert not uses(step, DEDUP)
    for step in (dt_steps.plain, ReadJsonl("in"), len):
        assert not uses(step, DATATROVE)


def test_one_step_of_datatrove_makes_all_readers_of_the_run_leave_out_empty_texts(made: Any) -> None:
    pipeline = made([reader(), "dt_steps:plain"], [reader(skip_empty_text=False), "dt_steps:media"])
    assert [stage.pipeline[0].params.get("skip_empty_text") for stage in pipeline.spec.stages] == [True, False]
    assert [pipeline.steps[name][0].leaves_out_empty for name in ("s0", "s1")] == [True, False]
    pipeline = made([reader(), "dt_steps:plain"])
    assert "skip_empty_text" not in pipeline.spec.stages[0].pipeline[0].params


def test_python_objects_keep_their_settings(made: Any) -> None:
    import dt_steps

    spec = made([reader(), "dt_steps:media"]).spec.model_copy(update={"pickled": True})
    step = ReadJsonl("in")
    Pipeline.create(spec, {"s0": [step, dt_steps.media]})
    assert (step.leaves_out_empty, step.skip_empty_text) == (True, None)


THEIRS = {"datatrove.pipeline.readers:JsonlReader": {"data_folder": "link"}}


@pytest.mark.parametrize(
    ("first", "second", "keys", "said"),
    [
        (reader(), reader("link", add_source=True, default_metadata={"a": 1}), {}, ""),
        (reader(), reader("other", limit=1), {}, ""),
        (THEIRS, THEIRS, {}, ""),
        (THEIRS, reader(), {}, "reader is datatrove's JsonlReader in s0, and ReadJsonl in s1"),
        (reader(), reader(limit=5), {}, "limit is None in s0, and 5 in s1"),
        (reader(), reader(skip_empty_text=False), {}, "skip_empty_text is True in s0, and False in s1"),
        (reader(), reader(shuffle_seed=1), {}, "shuffle_seed is None in s0, and 1 in s1"),
        (reader(), reader(), {"shard_by": "bytes"}, "shard_by is bytes in s0, and count in s1"),
    ],
)
def test_stages_that_number_the_documents_of_a_folder_read_it_alike(
    made: Any, first: Any, second: Any, keys: dict[str, Any], said: str
) -> None:
    pipelines = [first, "dt_steps:signatures"], [second, "dt_steps:Removing"]
    if not said:
        made(*pipelines, **keys)
        return
    with pytest.raises(StaggerError, match=f"s0 and s1 deduplicate .*/in by the numbers .* {said}"):
        made(*pipelines, **keys)
    made([first, "dt_steps:plain"], [second, "dt_steps:Removing"], **keys)
    made([first, "dt_steps:minhash"], [second, "dt_steps:Removing"], **keys)  # Each has numbers of its own.
