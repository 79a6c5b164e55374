"""`--set` finds steps and stages by position and by name, dots included."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.spec.assignments import assign

FILTER = "some.package.filters:RegexFilter"
WRITER = "some.package:Writer"
STEPS: list[Any] = [
    {"read_jsonl": {"path": "in"}},
    {FILTER: {"regex_exp": "x", "exclusion_writer": {WRITER: {"output_folder": "a"}}}},
    {"use": "kit:Upper", "params": {"suffix": "!"}},
    "write_jsonl",
    {"removed": {"path": "r"}, "kit:Old": None},
    {"kit:WithRemoved": {"removed": "r"}},
]
ONE: dict[str, Any] = {"executor": {"time": 5}, "vars": {"out": "a"}, "pipeline": STEPS}
TWO: dict[str, Any] = {"stages": [{"name": "v1.base", "pipeline": STEPS}, {"name": "2", "pipeline": STEPS}]}


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("executor.time", ("executor", "time")),
        ("executor.env.venv", ("executor", "env", "venv")),
        ("vars.out", ("vars", "out")),
        (f"pipeline.1.{FILTER}.regex_exp", ("pipeline", 1, FILTER, "regex_exp")),
        (f"pipeline.{FILTER}.regex_exp", ("pipeline", 1, FILTER, "regex_exp")),
        ("pipeline.RegexFilter.regex_exp", ("pipeline", 1, FILTER, "regex_exp")),
        ("pipeline.1.new", ("pipeline", 1, FILTER, "new")),
        (
            f"pipeline.1.exclusion_writer.{WRITER}.output_folder",
            ("pipeline", 1, FILTER, "exclusion_writer", WRITER, "output_folder"),
        ),
        (
            "pipeline.RegexFilter.exclusion_writer.Writer.compression",
            ("pipeline", 1, FILTER, "exclusion_writer", WRITER, "compression"),
        ),
        (
            "pipeline.1.exclusion_writer.output_folder",
            ("pipeline", 1, FILTER, "exclusion_writer", WRITER, "output_folder"),
        ),
        ("pipeline.2.params.suffix", ("pipeline", 2, "params", "suffix")),
        ("pipeline.2.use", ("pipeline", 2, "use")),
        ("pipeline.kit:Upper.suffix", ("pipeline", 2, "params", "suffix")),
        ("pipeline.write_jsonl.path", ("pipeline", 3, "write_jsonl", "path")),
        ("pipeline.0", ("pipeline", 0)),
        ("pipeline.1.removed", ("pipeline", 1, "removed")),
        ("pipeline.Old.removed.path", ("pipeline", 4, "removed", "path")),
        ("pipeline.4.size", ("pipeline", 4, "kit:Old", "size")),
        ("pipeline.5.WithRemoved.removed", ("pipeline", 5, "kit:WithRemoved", "removed")),
    ],
)
def test_a_step_is_found_by_its_position_or_its_name(target: str, path: tuple[Any, ...]) -> None:
    raw = copy.deepcopy(ONE)
    assert assign(raw, f"{target}=7") == path
    assert at(raw, path) == 7


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("stages.v1.base.pipeline.write_jsonl.path", ("stages", 0, "pipeline", 3, "write_jsonl", "path")),
        ("stages.0.tasks", ("stages", 0, "tasks")),
        ("stages.2.tasks", ("stages", 1, "tasks")),
    ],
)
def test_a_stage_is_found_by_its_position_or_its_name(target: str, path: tuple[Any, ...]) -> None:
    raw = copy.deepcopy(TWO)
    assert assign(raw, f"{target}=7") == path
    assert at(raw, path) == 7


@pytest.mark.parametrize(
    ("raw", "target", "said"),
    [
        (ONE, "pipeline.write_json.path", "there is no step 'write_json'; did you mean 'write_jsonl'?"),
        (ONE, "pipeline.9.path", "the file has no place for '9'"),
        (
            ONE,
            "pipeline.5.removed",
            "removed is a parameter of kit:WithRemoved, and a key beside it; for the",
        ),
        (ONE, "vars.output", "there is no variable 'output' in vars; did you mean 'out'?"),
        (TWO, "pipeline.0.path", "the file has stages; name one: --set stages.NAME.pipeline.0.path"),
        (TWO, "stages.v2.tasks", "there is no stage 'v2'; did you mean '2'?"),
        ({"pipeline": ["a:b", "c:b", {"a:b": {}}]}, "pipeline.a:b.x", "'a:b' can be pipeline.0 and pipeline.2; give"),
        ({"pipeline": ["a:b", "c:b", {"a:b": {}}]}, "pipeline.b.x", "can be pipeline.0 and pipeline.1 and pipeline.2"),
        ({"stages": [{"name": "1"}, {"name": "0"}]}, "stages.1.tasks", "can be stages.0 and stages.1"),
        (ONE, "executor.time.x", "the file has no place for 'x'"),
    ],
)
def test_what_is_nowhere_or_in_several_places_is_refused(raw: dict[str, Any], target: str, said: str) -> None:
    with pytest.raises(StaggerError) as caught:
        assign(copy.deepcopy(raw), f"{target}=7")
    assert str(caught.value).startswith(f"--set {target}: ")
    assert said in str(caught.value)


def test_what_an_alias_stands_for_is_set_in_one_place_only() -> None:
    shared = {"kit:Writer": {"output_folder": "a"}}
    raw = {"pipeline": [{"kit:A": {"writer": shared}}, {"kit:B": {"writer": shared}}]}
    assign(raw, "pipeline.A.writer.output_folder=b")
    assert raw["pipeline"][0]["kit:A"]["writer"] == {"kit:Writer": {"output_folder": "b"}}
    assert raw["pipeline"][1]["kit:B"]["writer"] == {"kit:Writer": {"output_folder": "a"}}
