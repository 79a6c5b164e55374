"""Pipeline files: the runs that they describe, and the error for each mistake."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml

from stagger.errors import StaggerError
from stagger.pipeline.chain import build
from stagger.pipeline.names import BUILTIN
from stagger.shipped import shipped
from stagger.spec.changes import Changes
from stagger.spec.executors import LocalSpec, SlurmSpec
from stagger.spec.load import load_file
from stagger.spec.models import PipelineFile
from stagger.spec.step_checks import step_schema
from stagger.spec.yaml_file import parse_value
from tests.conftest import STEPS, Cli

GOOD = """
name: demo
run_dir: runs/demo
tasks: 8
pipeline:
  - read_jsonl: {path: input}
  - my_steps:Upper: {suffix: "!"}
  - my_steps:swallow
  - write_jsonl: {path: out}
executor:
  type: slurm
  partition: cpu
  time: 12:00:00
  workers: 100
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(STEPS, tmp_path / "my_steps.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, text: str, *assignments: str, **changes: object) -> object:
    (folder / "p.yaml").write_text(textwrap.dedent(text))
    return load_file("p.yaml", Changes(assignments, **changes))  # type: ignore[arg-type]


def test_a_file_resolves_to_one_stage(folder: Path) -> None:
    (folder / "p.yaml").write_text(GOOD)
    spec = load_file("p.yaml")
    (stage,) = spec.stages
    assert spec.run_dir == str(folder / "runs/demo")
    assert spec.import_path == (str(folder),)
    assert (stage.name, stage.tasks) == ("demo", 8)
    assert [step.use for step in stage.pipeline] == ["read_jsonl", "my_steps:Upper", "my_steps:swallow", "write_jsonl"]
    assert isinstance(stage.executor, SlurmSpec)
    assert stage.executor.time == "12:00:00"


def test_stages_take_the_keys_above_them_as_defaults(folder: Path) -> None:
    (folder / "p.yaml").write_text(
        """
name: demo
run_dir: runs
tasks: 8
executor: {type: slurm, partition: cpu, time: 10}
stages:
  - name: second
    depends: [first]
    tasks: 2
    executor: {partition: big}
    pipeline: [my_steps:numbers]
  - name: first
    pipeline: [my_steps:numbers]
"""
    )
    first, second = load_file("p.yaml").stages
    assert (first.name, first.tasks, second.name, second.tasks) == ("first", 8, "second", 2)
    assert isinstance(first.executor, SlurmSpec)
    assert isinstance(second.executor, SlurmSpec)
    assert (first.executor.partition, second.executor.partition) == ("cpu", "big")
    assert second.executor.time == "10"


def test_variables_and_assignments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N", "5")
    monkeypatch.setenv("WHERE", "in: put")
    (folder / "p.yaml").write_text(GOOD.replace("tasks: 8", "tasks: ${N}").replace("path: input", 'path: "${WHERE}/x"'))
    spec = load_file("p.yaml", Changes(("executor.workers=7", "pipeline.1.my_steps:Upper.suffix=$${x}")))
    (stage,) = spec.stages
    assert stage.tasks == 5
    assert stage.pipeline[0].params["path"] == "${WHERE}/x"
    assert build("read_jsonl", stage.pipeline[0].params).path.endswith("/in: put/x")  # type: ignore[attr-defined]
    assert build("my_steps:Upper", stage.pipeline[1].params).suffix == "${x}"  # type: ignore[attr-defined]
    assert isinstance(stage.executor, SlurmSpec)
    assert stage.executor.workers == 7


def test_another_executor_takes_its_own_defaults(folder: Path) -> None:
    (folder / "p.yaml").write_text(GOOD)
    (stage,) = load_file("p.yaml", Changes(executor="local", tasks=3)).stages
    assert isinstance(stage.executor, LocalSpec)
    assert stage.tasks == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("partition:", "partiton:"), r"p\.yaml:12: executor\.partiton: unknown key; did you mean 'partition'\?"),
        (("tasks: 8", "taks: 8"), r"p\.yaml:4: taks: unknown key; did you mean 'tasks'\?"),
        (
            ("tasks: 8", "tasks: many"),
            r"p\.yaml:4: tasks: expected auto or a whole number from 1 to 10,000,000, not 'many'",
        ),
        (
            ("tasks: 8", "randomize_start_duration: -1"),
            r"p\.yaml:4: randomize_start_duration: expected auto or a whole number from 0 to",
        ),
        (("tasks: 8", "randomize_start_duration: 4294967296"), r"randomize_start_duration: .* from 0 to 86,400"),
        (("tasks: 8", "tasks: 0"), r"p\.yaml:4: tasks: expected .* not the number 0"),
        (("tasks: 8", "tasks: ${NOT_SET}"), r"p\.yaml:4: tasks: The environment variable NOT_SET is not set"),
        (("tasks: 8", "tasks: ${NOT_CLOSED"), r"p\.yaml:4: tasks: .*without its '}'"),
        (("tasks: 8", "tasks: 8\ntasks: 9"), r"p\.yaml:5: the key 'tasks' is given twice"),
        (("name: demo", "name: a/b"), r"p\.yaml:2: name: expected a name of .*letters, digits.*, not 'a/b'"),
        (("tasks: 8", "shared: everybody"), r"p\.yaml:4: shared: expected group, not 'everybody'"),
        (("run_dir: runs/demo", "run_dir: s3://b/run\nshared: group"), r"p\.yaml:4: shared: a store has no groups"),
        (("run_dir: runs/demo", ""), r"p\.yaml: run_dir: this key is missing"),
        (("pipeline:", "pipelines:"), r"p\.yaml:5: pipelines: unknown key; did you mean 'pipeline'"),
        (
            ("type: slurm\n  partition: cpu\n  time: 12:00:00", "partition: cpu"),
            r"executor\.partition: this key is for `type: slurm`",
        ),
        (("type: slurm", "type: slrum"), r"p\.yaml:10: executor: type must be one of local, slurm"),
        (("time: 12:00:00", "time: noon"), r"p\.yaml:13: executor\.time: 'noon' is not a time that Slurm understands"),
        (("workers: 100", "workers: 100\n  sbatch: {array: 1-3}"), r"p\.yaml:15: executor\.sbatch: 'array' is set by"),
        (
            ("workers: 100", "workers: 100\n  env: {venvs: x}"),
            r"executor\.env\.venvs: unknown key; did you mean 'venv'",
        ),
        (
            ("- read_jsonl:", "- read_json:"),
            r"p\.yaml:6: pipeline\[0\]\.read_json: There is no step 'read_json'; did you mean 'read_jsonl'\?",
        ),
        (
            ("{path: input}", "{paht: input}"),
            r"pipeline\[0\]\.read_jsonl\.paht: unknown parameter; did you mean 'path'\?",
        ),
        (("{path: input}", "{}"), r"p\.yaml:6: pipeline\[0\]\.read_jsonl: the parameter 'path' is missing"),
        (
            ("{path: input}", "{path: 7}"),
            r"pipeline\[0\]\.read_jsonl\.path: expected text, not the number 7; put it in quotes: path: '7'",
        ),
        (
            ("{path: out}", "{path: out, compression: lzma}"),
            r"pipeline\[3\]\.write_jsonl\.compression: expected gzip or zstd, not",
        ),
        (("suffix:", "sufix:"), r"pipeline\[1\]\.my_steps:Upper\.sufix: unknown parameter; did you mean 'suffix'\?"),
        (
            ("my_steps:Upper", "my_stebs:Upper"),
            r"p\.yaml:7: .*'my_stebs:Upper' cannot be imported.* Did you mean 'my_steps'\?",
        ),
        (("my_steps:Upper", "my_steps:Uper"), r"p\.yaml:7: .* my_steps has no 'Uper'; did you mean 'Upper'\?"),
        (("  - my_steps:swallow", "  - 17"), r"p\.yaml:8: pipeline\[2\]: write a step as `name`"),
        (("executor:\n  type", "executor:\n type:\n  - ]"), r"p\.yaml:\d+: not valid YAML"),
    ],
)
def test_each_mistake_is_one_sentence_with_its_place(folder: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in GOOD
    (folder / "p.yaml").write_text(GOOD.replace(*change))
    with pytest.raises(StaggerError, match=message) as raised:
        load_file("p.yaml")
    assert raised.value.exit_status == 2
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, and so not a pipeline file"),
        ("- a\n- b\n", "is not a pipeline file"),
        ("name: x\nrun_dir: y\npipeline: []\n", "p.yaml:3: pipeline: expected a list of steps, not an empty list"),
        ("name: x\nrun_dir: y\npipeline: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("name: x\nrun_dir: y\nstages: {a: 1}\n", "stages: "),
        (
            "name: x\nrun_dir: y\nstages:\n- {name: a, depends: [b], pipeline: [my_steps:numbers]}\n",
            r"stages\[0\]\.depends: there is no stage 'b'",
        ),
        (
            "name: x\nrun_dir: y\nstages:\n- {name: a, depends: [b], pipeline: [my_steps:numbers]}\n"
            "- {name: b, depends: [a], pipeline: [my_steps:numbers]}\n",
            "these stages wait for each other: a, b",
        ),
        (
            "name: x\nrun_dir: y\nstages:\n- {name: a, pipeline: [my_steps:numbers]}\n"
            "- {name: a, pipeline: [my_steps:numbers]}\n",
            "two stages are called 'a'",
        ),
        (
            "name: x\nrun_dir: y\nstages:\n- {name: a, taks: 3, pipeline: [my_steps:numbers]}\n",
            r"p\.yaml:4: stages\[0\]\.taks: unknown key; did you mean 'tasks'",
        ),
        (
            "name: x\nrun_dir: y\nstorage_options: {s3: {secret: hunter2}}\npipeline: [my_steps:numbers]\n",
            r"p\.yaml:3: storage_options\.s3\.secret: a secret in clear text",
        ),
        (
            "name: x\nrun_dir: y\nstorage_options: {s3: {secret: '${NO_SUCH}'}}\npipeline: [my_steps:numbers]\n",
            "NO_SUCH is not set",
        ),
    ],
)
def test_mistakes_of_whole_files(folder: Path, text: str, message: str) -> None:
    (folder / "p.yaml").write_text(text)
    with pytest.raises(StaggerError, match=message):
        load_file("p.yaml")


def test_a_secret_stays_a_reference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2")
    (folder / "p.yaml").write_text(
        "name: x\nrun_dir: y\nstorage_options: {s3: {secret: '${MY_SECRET}'}}\npipeline: [my_steps:numbers]\n"
    )
    assert "hunter2" not in load_file("p.yaml").model_dump_json()


@pytest.mark.parametrize("assignment", ["tasks", "=3", "a..b=1", "name.x.y=1", "pipeline.9.x=1"])
def test_a_wrong_assignment_is_said(folder: Path, assignment: str) -> None:
    (folder / "p.yaml").write_text(GOOD)
    with pytest.raises(StaggerError, match=r"--set"):
        load_file("p.yaml", Changes((assignment,)))


def test_plain_values_are_what_they_look_like() -> None:
    texts = ("12:00:00", "yes", "no", "on", "2024-01-01", "010", "1e3", "true", "null", "~", "", "0.5", "1_000")
    values = ["12:00:00", "yes", "no", "on", "2024-01-01", 10, 1000.0, True, None, None, None, 0.5, "1_000"]
    assert [parse_value(text) for text in texts] == values


def test_ready_pipelines_fit_the_schema(cli: Cli) -> None:
    import jsonschema

    schema = cli("schema", check=0).json
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in shipped("pipelines").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    jsonschema.validate(yaml.safe_load(GOOD.replace("time: 12:00:00", "time: '12:00:00'")), schema)
    for wrong in ("partition: 3", "partiton: cpu"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(GOOD.replace("partition: cpu", wrong)), schema)


def test_the_schema_explains_every_key() -> None:
    schema = PipelineFile.model_json_schema()
    described = schema["properties"].items()
    assert [name for name, field in described if "description" not in field and "$ref" not in field] == []
    assert "Reads JSON Lines" in json.dumps(schema)


def test_the_schema_explains_every_parameter_of_the_built_in_steps() -> None:
    steps = next(one["properties"] for one in step_schema()["anyOf"] if "properties" in one)
    assert steps.pop("stateless")["description"]
    assert steps.pop("removed")["description"]
    assert steps.keys() == BUILTIN.keys()
    for use, schema in steps.items():
        assert [name for name, one in schema["properties"].items() if not one.get("description")] == [], use
    assert steps["read_csv"]["properties"]["delimiter"]["description"].startswith("the character between fields")
