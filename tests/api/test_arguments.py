"""What `help()` shows of the executors, what their constructors take, and what a file and its documentation name."""

from __future__ import annotations

import inspect
import pydoc
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, PipelineExecutor, Run, SlurmExecutor, StaggerError
from stagger.cli import main
from stagger.spec.descriptions import descriptions
from stagger.spec.executors import LocalSpec, SlurmSpec
from stagger.spec.models import PipelineFile
from tests.conftest import ROOT

EXECUTORS = ((LocalExecutor, LocalSpec), (SlurmExecutor, SlurmSpec))

#: Keys of a file that Python has no argument for: an executor is one stage.
ONLY_FILES = {"stages", "executor", "type", "vars"}

#: Keys of stages in files with several.
OF_STAGES = {"depends", "uses"}


@pytest.mark.parametrize(("executor", "spec"), EXECUTORS)
def test_an_executor_takes_every_key_of_a_file(executor: type[Any], spec: type[Any]) -> None:
    arguments = set(inspect.signature(executor).parameters)
    assert arguments == (PipelineFile.model_fields.keys() | spec.model_fields.keys() | OF_STAGES) - ONLY_FILES


@pytest.mark.parametrize(("executor", "spec"), EXECUTORS)
def test_help_shows_each_argument_with_its_type_and_the_meaning_that_the_schema_gives(
    executor: type[Any], spec: type[Any]
) -> None:
    shown = " ".join(pydoc.plain(pydoc.render_doc(executor)).replace("|", " ").split())
    described = {**descriptions(PipelineFile), **descriptions(spec)}
    for name in inspect.signature(executor).parameters:
        assert f" {name} (" in shown
        if name not in ("pipeline", "name", "profile", *OF_STAGES):
            meaning = described[name]
            assert meaning
            assert " ".join(meaning.replace("|", " ").split()) in shown


def test_help_shows_types_defaults_and_the_keys_of_mappings() -> None:
    text = inspect.getdoc(SlurmExecutor) or ""
    assert "cpus_per_task (int, by default 1): Processors of a rank." in text
    assert "time (str | int): Time limit of a job" in text
    assert "start_policy ('uniform' | 'spread', by default uniform): How a job" in text
    assert "`memory_factor` by default 2.0: Factor by which" in text
    assert "`modules`: Environment modules to load." in text
    assert "`partition`: The partition; by default the stage's." in text
    assert "`servers`: Number of servers. Each server is one rank, in its own job." in text


def test_the_documentation_names_every_key() -> None:
    text = (ROOT / "docs" / "pipeline-files.md").read_text()
    for _, spec in EXECUTORS:
        for name in (PipelineFile.model_fields.keys() | spec.model_fields.keys()) - {"type"}:
            assert f"`{name}`" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"taks": 3}, "LocalExecutor: taks: unknown argument; did you mean 'tasks'"),
        ({"partition": "cpu"}, "LocalExecutor: partition: this is an argument of SlurmExecutor; leave it out"),
        ({"name": None}, "LocalExecutor: name: "),
        ({"run_dir": 3}, "LocalExecutor: run_dir: expected a path, not the number 3"),
    ],
)
def test_a_wrong_argument_is_said(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        LocalExecutor(**{"pipeline": [print], "run_dir": str(tmp_path), **arguments})


def test_mypy_knows_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(StaggerError):
        LocalExecutor([print], run_dir=tmp_path, taks=3)  # type: ignore[call-arg]
    with pytest.raises(StaggerError):
        SlurmExecutor([print], run_dir=tmp_path, tasks="many")  # type: ignore[arg-type]


def test_a_handle_retries_with_the_options_of_the_command() -> None:
    options = inspect.signature(main.retry).parameters.keys() - {"run", "json", "options", "assignments"}
    assert inspect.signature(Run.retry).parameters.keys() - {"self"} == options | {"set"}


def test_only_the_executors_of_a_kind_run(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="use LocalExecutor or SlurmExecutor"):
        PipelineExecutor([print], run_dir=str(tmp_path))
