"""At launch every step is created once, and its call checked, so that no task is the first to find a mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli, PipelineFiles

STEPS = """
import stagger
def two(data, rank):
    yield from data
def four(data, rank, world_size, more, least=1):
    yield from data
def predicate(doc):
    return len(doc.text) > 10
async def later(data, rank, world_size):
    return data
async def one_by_one(data, rank, world_size):
    for document in data:
        yield document
def same(data, rank, world_size):
    return data
def numbers(data=None, rank=0, world_size=1):
    from stagger import Document
    yield from (Document(str(n), str(n)) for n in range(10))
class Listing:
    data_folder = "input"
    def __call__(self, data=None, rank=0, world_size=1):
        return []
class Old:
    def run(self, data, rank, world_size):
        yield from data
class Broken:
    def __init__(self):
        raise OSError("no dictionary here")
    def __call__(self, data, rank, world_size):
        return data
@stagger.costly
class Model:
    def __init__(self):
        open("created", "a").write("x")
    def __call__(self, data, rank, world_size):
        return data
class CostlyTwo(Model):
    def __call__(self, data, rank):
        return data
class Noted:
    def __init__(self):
        open("created", "a").write("x")
    def __call__(self, data, rank, world_size):
        return data
"""


@pytest.fixture
def files(pipeline_file: PipelineFiles, tmp_path: Path) -> PipelineFiles:
    (tmp_path / "team_steps.py").write_text(STEPS)
    return pipeline_file


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("two", "takes (data, rank), but every step is called with (data, rank, world_size)"),
        ("predicate", "takes (doc), but every step is called with (data, rank, world_size)"),
        ("later", "is asynchronous"),
        ("one_by_one", "is asynchronous"),
        ("Old", "cannot be called; give the class a method __call__"),
        ("Broken", "cannot be created: OSError: no dictionary here"),
        ("CostlyTwo", "takes (self, data, rank)"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_step_that_no_task_could_call_is_refused(
    cli: Cli, files: PipelineFiles, tmp_path: Path, step: str, said: str, options: tuple[str, ...]
) -> None:
    ran = cli("launch", files(steps=(f"team_steps:{step}",)), *options, check=2)
    assert f"run.yaml:1: pipeline[1] (team_steps:{step})" in ran.err
    assert said in ran.err
    assert not (tmp_path / "run").exists()


def test_the_first_step_brings_input_or_needs_none(cli: Cli, files: PipelineFiles, tmp_path: Path) -> None:
    text = files().read_text()
    reader = text[text.index('{"read_jsonl"') : text.index('{"write_jsonl"')]
    path = tmp_path / "run.yaml"
    path.write_text(text.replace(reader, '"team_steps:same", '))
    ran = cli("launch", path, check=2)
    assert (
        "pipeline[0] (team_steps:same) is the first step, and the first step gets no data: begin with a reader"
        in ran.err
    )
    path.write_text(text.replace(reader, '"team_steps:numbers", '))
    cli("launch", path, "--tasks", 1, check=0)


def test_each_step_is_created_once_unless_it_is_costly(cli: Cli, files: PipelineFiles, tmp_path: Path) -> None:
    path = files(steps=("team_steps:Noted",), executor={"type": "slurm"})
    cli("launch", path, "--dry-run", check=0)
    assert (tmp_path / "created").read_text() == "x"
    (tmp_path / "created").unlink()
    cli("launch", files(steps=("team_steps:Model",), executor={"type": "slurm"}), "--dry-run", check=0)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_ranks_without_a_shard_are_counted(cli: Cli, files: PipelineFiles, executor: str) -> None:
    ran = cli("launch", files(tasks=5000, executor={"type": executor}), "--dry-run", check=0)
    assert "4,988 of 5,000 ranks have no shard, and nothing to do: set tasks to 12" in ran.err


@pytest.mark.parametrize(
    ("step", "said"), [("Listing", "stagger's own readers list it once"), ("numbers", "gets what it finds itself")]
)
def test_a_first_step_without_shards_is_told(
    cli: Cli, files: PipelineFiles, tmp_path: Path, step: str, said: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: run\nrun_dir: run\ntasks: 8\npipeline: ['team_steps:{step}']\n")
    ran = cli("launch", path, "--dry-run", check=0)
    assert f"{step} brings no shards: each of 8 ranks" in ran.err
    assert said in ran.err
    assert "input    no shards: the first step makes or finds its own records" in ran.out
