"""`vars` of a pipeline file: named values that every stage can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.spec.changes import Changes
from stagger.spec.load import load_file, reached
from stagger.spec.models import RunSpec
from stagger.terminal import logger

VARS = """
  out: "${KIT_OUTPUT}/data"
  removed: "${vars.out}/removed"
  count: 3
  keep: [id]
  anchored: &anchored {a: 1}
"""
STAGES = """
stages:
  - name: one
    tasks: "${vars.count}"
    pipeline:
      - read_jsonl: {path: "${vars.out}", limit: "${vars.count}"}
      - kit_variables:same: {keep: "${vars.keep}", text: "n=${vars.count}, $${vars.out}", same: *anchored}
      - write_jsonl: {path: "${vars.removed}/1"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kit_variables.py").write_text("def same(data, rank, world_size, **params):\n    return data\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KIT_OUTPUT", "/kit")


def load(variables: str = VARS, stages: str = STAGES, *assignments: str) -> RunSpec:
    Path("p.yaml").write_text(f"name: demo\nrun_dir: run\nvars:{variables}{stages}")
    return load_file("p.yaml", Changes(assignments))


def params(spec: RunSpec) -> list[dict[str, Any]]:
    return [step.params for step in spec.stages[0].pipeline]


def test_a_variable_stands_for_a_value_of_any_type_and_within_texts() -> None:
    spec = load()
    assert spec.stages[0].tasks == 3
    assert params(spec) == [
        {"path": "${KIT_OUTPUT}/data", "limit": 3},
        {"keep": ["id"], "text": "n=3, $${vars.out}", "same": {"a": 1}},
        {"path": "${KIT_OUTPUT}/data/removed/1"},
    ]


def test_the_command_line_sets_variables() -> None:
    spec = load(VARS, STAGES, "vars.out=/other", "vars.count=4")
    assert (spec.stages[0].tasks, params(spec)[2]["path"]) == (4, "/other/removed/1")


def test_variables_are_used_in_the_keys_of_the_run_as_well() -> None:
    Path("p.yaml").write_text("name: a\nvars: {out: /kit}\nrun_dir: '${vars.out}/run'\npipeline: [m:f]\n")
    assert reached("p.yaml")[0] == "/kit/run"


def test_a_variable_that_nothing_uses_is_told() -> None:
    said: list[str] = []
    sink = logger.add(said.append, format="{message}")
    load(VARS + "  spare: 1\n  more: 2\n")
    logger.remove(sink)
    assert said[0].startswith("p.yaml:9: vars.spare: nothing uses the variables spare, more; write ${vars.spare} where")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (" [1]\n", "p.yaml:3: vars: expected a mapping of names and values, not a list."),
        ("\n  a.b: 1\n", "p.yaml:4: vars.a.b: the name of a variable consists of letters, digits and _; rename it."),
        ("\n  ot: 1\n", "path: there is no variable 'out' in vars; did you mean 'ot'?"),
        ("\n  count: '${vars.out}'\n  out: '${vars.count}'\n", "cannot stand for itself: out -> count -> out."),
        ("\n  out: '${vars.count'\n", "a '${' without its '}'"),
        ("\n  count: 3\n  keep: 1\n  out: [a]\n  removed: '${vars.out}'\n", "the variable removed is a list, and"),
        ("\n  token: abcdefgh\n", "vars.token: a secret in clear text would be stored"),
    ],
)
def test_a_wrong_variable_is_refused_with_its_place(variables: str, said: str) -> None:
    with pytest.raises(StaggerError) as caught:
        load(variables, STAGES.replace(", same: *anchored", "").replace('tasks: "${vars.count}"', "tasks: 1"))
    assert said in str(caught.value)


def test_variables_that_multiply_are_bounded() -> None:
    doubled = "".join(f"  v{n}: ['${{vars.v{n - 1}}}', '${{vars.v{n - 1}}}']\n" for n in range(1, 25))
    with pytest.raises(StaggerError, match="more than 100,000 values"):
        load(f"\n  v0: [1]\n{doubled}", "pipeline:\n  - kit_variables:same: {x: '${vars.v24}'}\n")
