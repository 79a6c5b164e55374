"""Objects in the parameters of steps: made from `{"module:Class": {...}}`, at any depth, or refused at launch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.pipeline.chain import build
from stagger.pipeline.names import install_hint
from stagger.pipeline.objects import as_data, made
from stagger.plan.stage_steps import create_steps
from stagger.spec.changes import Changes
from stagger.spec.load import imported_modules, load_file
from stagger.spec.models import RunSpec
from stagger.terminal import logger

STEPS = """
from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from stagger import costly

DEFAULT = object()

@dataclass
class Hash:
    bits: int = 64

@dataclass
class Config:
    hash: Hash | None = None
    n: int = 5

class Picky:
    def __init__(self, keep=None, drop=None):
        if keep and drop:
            raise ValueError("keep and drop cannot both be given")

class Needy:
    def __init__(self):
        import no_such_package

@costly
class Costly:
    def __init__(self):
        raise AssertionError("made at launch")

class Step:
    def __init__(self, config: Config | None = None, *, rule: Callable[[str], bool] | None = None,
                 folder: str | tuple[str, dict] | Hash = "", sizes: tuple[int, ...] = (), names: list[str] = [],
                 kind: type | None = None, anything=None, many: list[tuple[str, int]] = [], model: Any = None):
        self.__dict__.update(locals())
    def __call__(self, data, rank, world_size):
        return data

def odd(text):
    return len(text) % 2 == 1

def twice(number):
    return number * 2
"""


@pytest.fixture(autouse=True)
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kit_objects.py").write_text(textwrap.dedent(STEPS))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def load(params: str, *assignments: str) -> RunSpec:
    Path("p.yaml").write_text(
        "name: demo\nrun_dir: run\npipeline:\n  - read_jsonl: {path: in}\n"
        f"  - kit_objects:Step: {params}\n  - write_jsonl: {{path: out}}\n"
    )
    return load_file("p.yaml", Changes(assignments))


def step(params: str, *assignments: str) -> Any:
    """The step as a launch, and a task, makes it."""
    stage = load(params, *assignments).stages[0]
    create_steps(stage)
    stored = json.loads(json.dumps(stage.pipeline[1].params))
    return build(stage.pipeline[1].use, stored)


def refused(params: str) -> str:
    with pytest.raises(StaggerError) as caught:
        create_steps(load(params).stages[0])
    assert str(caught.value).startswith("p.yaml:5: pipeline[1]")
    return str(caught.value)


def test_objects_are_made_at_any_depth() -> None:
    found = step('{config: {"kit_objects:Config": {n: 3, hash: {"kit_objects:Hash": {bits: 32}}}}}')
    assert (found.config.n, found.config.hash.bits) == (3, 32)
    found = step('{anything: {inner: [{"kit_objects:Hash": {}}, {"kit_objects:Hash": {bits: 8}}]}}')
    assert [one.bits for one in found.anything["inner"]] == [64, 8]


def test_what_exists_is_taken_by_its_name_alone() -> None:
    import kit_objects  # type: ignore[import-not-found]

    found = step('{rule: {"kit_objects:odd"}, anything: {"kit_objects:DEFAULT"}, kind: {"kit_objects:Hash"}}')
    assert found.rule is kit_objects.odd
    assert found.anything is kit_objects.DEFAULT
    assert found.kind is kit_objects.Hash


def test_a_list_is_the_tuple_that_the_annotation_takes() -> None:
    found = step("{folder: [out, {auto_mkdir: true}], sizes: [1, 2], names: [a], anything: [1], many: [[a, 1]]}")
    assert found.folder == ("out", {"auto_mkdir": True})
    assert (found.sizes, found.names, found.anything, found.many) == ((1, 2), ["a"], [1], [("a", 1)])


@pytest.mark.parametrize(
    "data", ['{"s3://b": {}}', "{en: {a: 1}}", '{"en:us": {a: 1}, "en:gb": {a: 2}}', '{"en:us": 1}', '{"12:00": {}}']
)
def test_other_mappings_are_data(data: str) -> None:
    assert step(f"{{anything: {data}}}").anything == json.loads(json.dumps(load_value(data)))


def load_value(text: str) -> Any:
    from stagger.spec.yaml_file import parse_value

    return parse_value(text)


def test_two_dollar_signs_make_a_name_data() -> None:
    assert step('{anything: {"$$kit_objects:Hash": {bits: 8}}}').anything == {"kit_objects:Hash": {"bits": 8}}
    value = {"a:b": {"$$c:d": [{"e:f": None}]}}
    assert made(as_data(value), Any, ()) == value


def test_references_and_assignments_reach_into_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_SECRET", "hunter2hunter2")
    params = '{anything: {"kit_objects:Picky": {keep: "${KIT_SECRET}"}}}'
    assert load(params).stages[0].pipeline[1].params["anything"]["kit_objects:Picky"]["keep"] == "${KIT_SECRET}"
    params = '{config: {"kit_objects:Config": {n: 3}}}'
    assert step(params, "pipeline.1.kit_objects:Step.config.kit_objects:Config.n=7").config.n == 7


def test_modules_of_objects_are_announced() -> None:
    assert imported_modules(load('{anything: {"fractions:Fraction": {numerator: 1}}}')) == ["kit_objects", "fractions"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ('{config: {"kit_objects:Confg": {}}}', "no 'Confg'; did you mean 'Config'?"),
        (
            '{config: {"kit_object:Config": {}}}',
            'If this is data, and no object, write the key as "$$kit_object:Config"',
        ),
        ('{config: {"kit_objects:Config": {m: 3}}}', "kit_objects:Config.m: unknown parameter; choose from hash, n."),
        (
            '{anything: {"kit_objects:twice": {}}}',
            "'number' is missing; give it a value. For the function itself write",
        ),
        (
            '{config: {"kit_objects:Config": {hash: {bits: 3}}}}',
            'expected an object of Hash, not a mapping; write {"kit',
        ),
        ('{config: {"kit_objects:Hash": {}}}', "config: expected an object of Config, but kit_objects:Hash is a Hash"),
        ('{config: {"kit_objects:Config"}}', 'is a class; for an object of it write {"kit_objects:Config": {}}'),
        ('{config: {"kit_objects:Config": 3}}', "expected a mapping of parameters, not the number 3"),
        ('{config: {"kit_objects:Config": , n: 3}}', "it has n beside it: indent the parameters"),
        (
            '{rule: "kit_objects:odd"}',
            "expected a function, not the text 'kit_objects:odd'; write {\"kit_objects:odd\"}",
        ),
        (
            "{config: small}",
            "config: expected an object of Config, not the text 'small'; write {\"kit_objects:Config\": ",
        ),
        ("{rule: odd}", "expected a function, not the text 'odd'; write {\"module:function\"}"),
        ('{anything: {"kit_objects:DEFAULT": {}}}', 'takes no parameters; for it itself write {"kit_objects:DEFAULT"}'),
        (
            '{anything: [{"kit_objects:Picky": {keep: 1, drop: 1}}]}',
            "anything[0]: kit_objects:Picky cannot be created: ValueError: keep and drop cannot both be given (kit_ob",
        ),
        ('{anything: {"kit_objects:Needy": {}}}', "install it, for example with: pip install no_such_package"),
        ('{anything: {"kit_objects:Picky": {keep: hf_abcdefghijklmnopqrstuvwxyz}}}', "a secret in clear text"),
    ],
)
def test_a_wrong_object_is_refused_at_launch_with_its_place(params: str, said: str) -> None:
    assert said in refused(params)


def test_text_that_names_something_is_told_where_the_type_is_unknown() -> None:
    said: list[str] = []
    sink = logger.add(said.append, format="{message}")
    assert step("{anything: 'kit_objects:odd'}").anything == "kit_objects:odd"
    logger.remove(sink)
    assert "'kit_objects:odd' is passed as text; if a function is meant" in said[0]


def test_a_costly_object_is_not_made_at_launch() -> None:
    stage = load('{anything: {"kit_objects:Costly": {}}}').stages[0]
    assert isinstance(create_steps(stage)[1], type)


@pytest.mark.parametrize(
    ("missing", "named", "hint"),
    [
        ("datatrove", "datatrove.pipeline.filters", "'stagger-slurm[datatrove]'"),
        ("tldextract", "datatrove.pipeline.filters", "'stagger-slurm[datatrove]'"),
        ("datatrove", "my_steps", "'stagger-slurm[datatrove]'"),
        ("no_such_package.part", "my_steps", "pip install no_such_package"),
        ("datatrove.pipeline.filtres", "datatrove.pipeline.filtres", ""),
        ("my_stpes", "my_stpes", ""),
    ],
)
def test_what_to_install(missing: str, named: str, hint: str) -> None:
    said = install_hint(ModuleNotFoundError(f"No module named {missing!r}", name=missing), named)
    assert hint in said
    assert bool(said) == bool(hint)
