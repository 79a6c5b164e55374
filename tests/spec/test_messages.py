"""Each wrong value of each key is a sentence for a person: the place, what is there, what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from stagger import LocalExecutor, SlurmExecutor
from stagger.errors import StaggerError
from stagger.spec.blocks import BlocksSpec
from stagger.spec.executors import EndSpec, EnvSpec, LocalSpec, RetrySpec, SlurmSpec
from stagger.spec.load import load_file
from stagger.spec.models import PipelineFile, StageSpec
from stagger.spec.profiles import ConfigFile, Profile

#: A value of each type that YAML has.
VALUES: tuple[Any, ...] = (12, -3, 1.5, "some words", "", True, None, [1], [], [{"a": 1}], {"a": 1}, {}, [None])

#: Words of pydantic, of Python and of regular expressions.
FOREIGN = re.compile(
    r"[Ii]nput should|validation|type=|_type\b|Extra|should (be|have|match)|valid (string|integer|number|tuple|dict)"
    r"|instance of|<class|Traceback|Error|Spec\b|NoneType|\bNone\b|tuple|\bdict\b|dictionary|\bstr\b|\bint\b|\bbool\b"
    r"|parse|pattern|\[A-Z|\\w|\^"
)

GOOD: dict[str, Any] = {"name": "p", "run_dir": "run", "pipeline": [{"read_jsonl": {"path": "in"}}]}
SLURM: dict[str, Any] = {**GOOD, "executor": {"type": "slurm"}}
BLOCKS: dict[str, Any] = {"name": "p", "run_dir": "run", "blocks": {"total": 8, "servers": 2}}
STAGES: dict[str, Any] = {"name": "p", "run_dir": "run", "stages": [{"name": "a", "pipeline": GOOD["pipeline"]}]}

#: Model -> a good file, and the path of a mapping of this model in it.
MODELS: dict[type[BaseModel], tuple[dict[str, Any], tuple[str | int, ...]]] = {
    PipelineFile: (GOOD, ()),
    LocalSpec: (GOOD, ("executor",)),
    SlurmSpec: (SLURM, ("executor",)),
    EnvSpec: (SLURM, ("executor", "env")),
    EndSpec: (SLURM, ("executor", "end")),
    RetrySpec: (SLURM, ("retries",)),
    BlocksSpec: (BLOCKS, ("blocks",)),
    StageSpec: (STAGES, ("stages", 0)),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(file: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of a file's content with `value` at `path`."""
    if not path:
        return value
    if isinstance(file, list):
        return [changed(item, path[1:], value) if index == path[0] else item for index, item in enumerate(file)]
    return {**file, path[0]: changed(file.get(path[0], {}), path[1:], value)}


def key_of(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def refusals(content: dict[str, Any], file: str = "p.yaml") -> Iterator[str]:
    """The sentences with which a file is refused; none if it is taken."""
    Path(file).write_text(yaml.safe_dump(content, sort_keys=False))
    try:
        load_file("p.yaml")
    except StaggerError as error:
        yield from str(error).split("\n")


@pytest.mark.parametrize("model", MODELS)
def test_each_wrong_value_of_each_key_is_a_persons_sentence(model: type[BaseModel]) -> None:
    good, below = MODELS[model]
    refused = 0
    for name in model.model_fields:
        for value in VALUES:
            path = (*below, name)
            for sentence in refusals(changed(good, path, value)):
                assert not FOREIGN.search(sentence.replace(repr(value), "")), sentence
                assert re.match(r"p\.yaml:\d+: ", sentence), sentence
                assert key_of(path) in sentence or sentence.count(name), sentence
                refused += 1
    assert refused >= 4 * len(model.model_fields)


def test_the_same_in_profiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGGER_CONFIG", str(folder / "config.yaml"))
    Path("p.yaml").write_text(yaml.safe_dump({**GOOD, "profile": "gpu"}))
    places = [
        *(("profiles", "gpu", name) for name in Profile.model_fields),
        *((name,) for name in ConfigFile.model_fields),
    ]
    refused = 0
    path: tuple[str, ...]
    for path in places:
        for value in VALUES:
            Path("config.yaml").write_text(yaml.safe_dump(changed({"profiles": {"gpu": {}}}, path, value)))
            try:
                load_file("p.yaml")
            except StaggerError as error:
                for sentence in str(error).split("\n"):
                    if not sentence.startswith("p.yaml"):  # The profile is gone, and the file asks for it.
                        assert not FOREIGN.search(sentence.replace(repr(value), "")), sentence
                        assert re.match(r".*config\.yaml:\d+: ", sentence), sentence
                        refused += 1
    assert refused >= 4 * len(places)


#: Arguments that Python checks by itself, or that files do not have.
OWN = ("pipeline", "run_dir", "blocks", "stages", "executor", "type")


@pytest.mark.parametrize(("executor", "spec"), [(LocalExecutor, LocalSpec), (SlurmExecutor, SlurmSpec)])
def test_the_same_for_arguments_in_python(executor: Any, spec: type[BaseModel]) -> None:
    refused = 0
    for name in [*spec.model_fields, *PipelineFile.model_fields]:
        for value in () if name in OWN else VALUES:
            try:
                executor([print], **{"run_dir": "run", name: value})
            except StaggerError as error:
                for sentence in str(error).split("\n"):
                    assert sentence.startswith(f"{executor.__name__}: ")
                    assert name in sentence
                    assert not FOREIGN.search(sentence.replace(repr(value), "")), sentence
                    assert f"write {name}: " not in sentence
                    refused += 1
    assert refused >= 60


@pytest.mark.parametrize(
    ("key", "value", "end"),
    [
        ("name", 12, "not the number 12; put it in quotes: name: '12'."),
        ("tasks", "8,000", "expected auto or a whole number from 1 to 10,000,000, not '8,000'; write tasks: 8000."),
        ("tasks", "8k", "write tasks: 8000."),
        ("tasks", True, "expected a whole number from 1 to 10,000,000, not true."),
        ("tasks", [2], "not a list; write it without brackets or dash: tasks: 2."),
        ("tasks", None, "expected auto or a whole number from 1 to 10,000,000, but no value is given."),
        ("randomize_start_duration", "3 min", "write randomize_start_duration: 180."),
        ("start_policy", "uniforme", "expected uniform or spread, not 'uniforme'; did you mean 'uniform'?"),
        ("run_dir", "", "expected a path, not ''; write for example run_dir: runs/my_run."),
        ("run_dir", "$HOME/run", "$HOME is not replaced; write ${HOME}."),
        ("executor", "slurm", "not 'slurm'; write for example executor: {type: slurm}."),
        ("executor.type", "Slurm", "type must be one of local, slurm, not 'Slurm'; did you mean 'slurm'?"),
        ("executor.time", "2h", "'2h' is not a time that Slurm understands; write minutes, H:MM:SS or D-HH:MM:SS."),
        ("executor.mem_per_cpu_gb", "4G", "expected a number greater than 0, not '4G'; write mem_per_cpu_gb: 4."),
        ("executor.mem", "4G", "unknown key; did you mean 'mem_per_cpu_gb'?"),
        ("executor.gpus", 2, "unknown key; did you mean 'gpus_per_task'?"),
        ("executor.constraint", "a100", "it is an option of sbatch: write it below `sbatch:`, as constraint."),
        ("executor.tasks", 8, "this key belongs above `executor:`, not below it; move it there."),
        ("executor.env", ["gcc"], "write for example env: {modules: [python], venv: /shared/venv}."),
        ("executor.env.modules", "gcc", "expected a list, not 'gcc'; write modules: [gcc]."),
        ("executor.sbatch.exclude", ["n1", "n2"], "expected text, a number, true or false, not a list."),
        ("executor.avoid_nodes", "maybe", "expected true or false, not 'maybe'."),
        ("workers", 5, "this key belongs below `executor:`; move it there."),
        (
            "storage_options.endpoint_url",
            "http://h",
            "endpoint_url is an option, not a protocol; put it below its protocol",
        ),
        ("retries", 3, "expected a mapping of settings, not the number 3; write for example retries: {max: 2}."),
        ("retries.on", "TIMEOUT", "expected a list, not 'TIMEOUT'; write on: [TIMEOUT]."),
        ("pipeline", {"read_jsonl": {"path": "in"}}, "not a mapping; begin each item with a dash and a space."),
    ],
)
def test_the_remedy_is_what_to_write(key: str, value: Any, end: str) -> None:
    path = tuple(key.split("."))
    (sentence,) = refusals(changed(SLURM, path, value))
    assert re.match(r"p\.yaml:\d+: ", sentence)
    assert end in sentence


STEPS = """
def keep(data, rank, world_size, min_chars=3):
    yield from data
class Limited:
    def __init__(self, limit):
        self.limit = limit + 1
    def __call__(self, data, rank, world_size):
        yield from data
"""


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("our_steps.keep", "There is no step 'our_steps.keep'; did you mean 'our_steps:keep', with a colon?"),
        ({"our_steps": "keep"}, "not 'keep'; did you mean our_steps:keep, without space?"),
        ("our_step:keep", "Did you mean 'our_steps'?"),
        ("our_steps.py:keep", "Did you mean 'our_steps'?"),
        ("our_steps:kep", "our_steps has no 'kep'; did you mean 'keep'?"),
        ({"our_steps:keep": {"min_char": 3}}, "min_char: unknown parameter; did you mean 'min_chars'?"),
        ("our_steps:Limited", "the parameter 'limit' is missing; give it a value."),
        ("write_json", "There is no step 'write_json'; did you mean 'write_jsonl'?"),
        ("ReadJsonl", "did you mean 'read_jsonl'?"),
        ({"write_jsonl": "out"}, "write for example write_jsonl: {path: out}."),
        ({"write_jsonl": None, "path": "out"}, "indent the parameters of write_jsonl further than its name"),
        ({"write_jsonl": {"path": "o"}, "read_text": {}}, "begin each step with a dash."),
        ({"m:f": {}, "statless": True}, "statless is unknown beside m:f; did you mean 'stateless'?"),
        (
            {"write_jsonl": {"path": "o", "compression": "gzp"}},
            "gzip or zstd, not 'gzp'; did you mean 'gzip'?",
        ),
        (
            {"write_jsonl": {"path": 5}},
            "write_jsonl.path: expected text, not the number 5; put it in quotes",
        ),
        (
            {"read_jsonl": {"path": "in", "recursive": "yes"}},
            "not 'yes'; write recursive: true.",
        ),
        ({"read_jsonl": {"path": "$DATA/in"}}, "$DATA is not replaced; write ${DATA}."),
        (None, "write a step as `name`, or as `name: {parameters}`, not as an empty value."),
        (["write_jsonl", "out"], "write a step as `name`, or as `name: {parameters}`, not as a list."),
    ],
)
def test_mistakes_in_steps(folder: Path, step: Any, said: str) -> None:
    (folder / "our_steps.py").write_text(STEPS)
    (sentence,) = refusals({**GOOD, "pipeline": [*GOOD["pipeline"], step]})
    assert re.match(r"p\.yaml:\d+: pipeline\[1\]", sentence), sentence
    assert said in sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depends": ["aa"]}, "stages[1].depends: there is no stage 'aa'; did you mean 'a'?"),
        ({"depends": "a"}, "stages[1].depends: expected a list of stages, not 'a'; write depends: [a]."),
        ({"depends": [1]}, "expected the name of a stage, not the number 1; put it in quotes: '1'."),
        ({"depends": ["b"]}, "stages[1].depends: the stage 'b' waits for itself"),
        ({"name": "a"}, "stages[1].name: two stages are called 'a'; give each a name of its own."),
        ({"name": "lock"}, "stages[1].name: a stage cannot be called 'lock'"),
        ({"run_dir": "x"}, "stages[1].run_dir: this key is for the whole run; move it to the top of the file."),
        ({"depend": ["a"]}, "stages[1].depend: unknown key; did you mean 'depends'?"),
        ({"executor": {"type": "slurm", "partitoin": "x"}}, "stages[1].executor.partitoin: unknown key; did you mean"),
        (5, "stages[1]: expected a mapping with the stage's name and pipeline, not the number 5."),
    ],
)
def test_mistakes_in_stages(change: Any, said: str) -> None:
    (a,) = STAGES["stages"]
    b = {**a, "name": "b", **change} if isinstance(change, dict) else change
    (sentence,) = refusals({**STAGES, "stages": [a, b]})
    assert re.match(r"p\.yaml:\d+: ", sentence)
    assert said in sentence


def test_a_value_of_the_command_line_is_named_by_its_option(folder: Path) -> None:
    from stagger.spec.changes import Changes

    Path("p.yaml").write_text(yaml.safe_dump(SLURM))
    for assignment, said in {
        "tasks=many": "--set tasks: expected auto or a whole number from 1 to 10,000,000, not 'many'.",
        "executor.workes=3": "--set executor.workes: unknown key; did you mean 'workers'?",
        "pipeline.0.read_jsonl.glob=@x": "--set pipeline.0.read_jsonl.glob '@x': a value that begins with @ must be in"
        " quotes; write '@x'.",
    }.items():
        with pytest.raises(StaggerError) as raised:
            load_file("p.yaml", Changes((assignment,)))
        assert str(raised.value) == said
