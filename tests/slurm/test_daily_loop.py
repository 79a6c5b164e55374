"""The daily loop, as a person types it: refused mistakes, a run in which much goes wrong, and how it is mended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Cli, Ran, until
from tests.slurm.conftest import slurm, visible

PIPELINE = """\
name: daily
run_dir: run
randomize_start_duration: 0
stages:
  - name: clean
    tasks: 100
    pipeline:
      - read_jsonl: {path: input, glob: "*.jsonl"}
      - team_steps:keep: {language: en}
      - write_jsonl: {path: clean}
    executor: {type: slurm, partition: cpu, time: 10, ranks_per_job: 25, ranks_at_once: 5}
  - name: sample
    tasks: 2
    pipeline:
      - read_jsonl: {path: input, glob: "*0.jsonl"}
      - write_jsonl: {path: sample}
    executor: {type: slurm, partition: cpu, time: 10, cpus_per_task: 1}
"""

STEPS = """\
import os
import signal


def keep(data, rank, world_size, language):
    for document in data:
        if document.metadata["language"] == language:
            yield grade(document)


def grade(document):
    if document.text == "bomb":
        os.kill(os.getpid(), signal.SIGKILL)
    document.metadata["grade"] = int(document.metadata["grade"])
    return document


def two(data, rank):
    yield from data


def predicate(document):
    return len(document.text) > 10


async def later(data, rank, world_size):
    yield data


class Old:
    def run(self, data, rank, world_size):
        yield from data


class Model:
    def __init__(self, folder):
        raise FileNotFoundError(f"no model in {folder}")

    def __call__(self, data, rank, world_size):
        yield from data
"""

MENDED = (
    STEPS.replace('metadata["language"]', 'metadata.get("language")')
    .replace('int(document.metadata["grade"])', 'int(str(document.metadata["grade"]).replace("none", "0"))')
    .replace("os.kill(os.getpid(), signal.SIGKILL)", "document.text = str()")
)

#: The shards in which something is wrong. The plan deals shards to ranks in turn, so they are the ranks as well.
NO_LANGUAGE, BAD_GRADE, BOMB = (7, 70), 31, 55


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a user has it: the input, the steps and the pipeline file."""
    (tmp_path / "input").mkdir()
    for shard in range(100):
        records = [
            {"id": f"{shard}-{i}", "text": f"text {i}", "language": "de" if i % 3 else "en", "grade": i}
            for i in range(30)
        ]
        if shard in NO_LANGUAGE:
            del records[12]["language"]
        if shard == BAD_GRADE:
            records[3]["grade"] = "none"
        if shard == BOMB:
            records[6]["text"] = "bomb"
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "input" / f"{shard:03d}.jsonl").write_text(lines)
    (tmp_path / "team_steps.py").write_text(STEPS)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return tmp_path


@dataclass(frozen=True)
class Mistake:
    """An edit of the pipeline file, and words that the refusal must have."""

    old: str
    new: str
    says: tuple[str, ...]


CLEAN_STEP = "team_steps:keep: {language: en}"

MISTAKES = {
    "a misspelled key": Mistake("    tasks: 100", "    taks: 100", ("pipeline.yaml:6", "taks", "tasks")),
    "a misspelled list": Mistake(
        '    pipeline:\n      - read_jsonl: {path: input, glob: "*.j',
        '    pipline:\n      - read_jsonl: {path: input, glob: "*.j',
        ("pipeline.yaml:7", "pipline", "pipeline"),
    ),
    "a misspelled step": Mistake("read_jsonl: {path: input, glob: \"*0", "read_jsnl: {path: input, glob: \"*0",
                                 ("pipeline.yaml:15", "read_jsnl", "read_jsonl")),
    "a misspelled parameter": Mistake("{path: clean}", "{pth: clean}", ("pipeline.yaml:10", "pth", "path")),
    "an unquoted pattern": Mistake('"*.jsonl"', "*.jsonl", ("pipeline.yaml:8", "quotes", "'*.jsonl'")),
    "a tab": Mistake("    tasks: 2", "\ttasks: 2", ("pipeline.yaml:13", "tab", "spaces")),
    "a key twice": Mistake("    tasks: 2", "    tasks: 2\n    tasks: 3", ("pipeline.yaml:14", "tasks", "twice")),
    "a dot for a colon": Mistake("team_steps:keep", "team_steps.keep", ("pipeline.yaml:9", "team_steps:keep")),
    "a missing function": Mistake("team_steps:keep", "team_steps:kep", ("kep", "keep")),
    "a missing module": Mistake("team_steps:keep", "teamsteps:keep", ("teamsteps",)),
    "a missing argument": Mistake(CLEAN_STEP, "team_steps:keep", ("language",)),
    "a step of two arguments": Mistake(CLEAN_STEP, "team_steps:two", ("team_steps:two", "world_size")),
    "a function of one document": Mistake(CLEAN_STEP, "team_steps:predicate", ("team_steps:predicate", "filter")),
    "an asynchronous step": Mistake(CLEAN_STEP, "team_steps:later", ("async",)),
    "objects that cannot be called": Mistake(CLEAN_STEP, "team_steps:Old", ("team_steps:Old", "__call__")),
    "a constructor that fails": Mistake(CLEAN_STEP, "team_steps:Model: {folder: m}", ("no model in m",)),
    "no reader": Mistake('      - read_jsonl: {path: input, glob: "*.jsonl"}\n', "", ("first step", "read_jsonl")),
    "two readers": Mistake(CLEAN_STEP, "read_jsonl: {path: input}", ("only the first step",)),
    "no such input": Mistake("{path: input, glob: \"*.j", "{path: inptu, glob: \"*.j", ("inptu",)),
    "a pattern of nothing": Mistake('"*.jsonl"', '"*.parquet"', ("*.parquet",)),
    "no tasks": Mistake("tasks: 100", "tasks: 0", ("pipeline.yaml:6", "tasks", "1")),
    "tasks in words": Mistake("tasks: 100", "tasks: hundred", ("pipeline.yaml:6", "tasks", "hundred", "number")),
    "a stage twice": Mistake("name: sample", "name: clean", ("clean",)),
    "an unknown stage": Mistake("    tasks: 2", "    tasks: 2\n    depends: [claen]", ("claen", "clean")),
    "a stage that waits for itself": Mistake("    tasks: 2", "    tasks: 2\n    depends: [sample]", ("sample",)),
    "outputs over the input": Mistake(
        "{path: clean}", '{path: input, filename: "{stem}.jsonl", compression: null}', ("would replace the input",)
    ),
    "one output for all ranks": Mistake("{path: clean}", "{path: clean, filename: all.jsonl}", ("{rank}",)),
    "two stages that write the same": Mistake("{path: sample}", "{path: clean}", ("clean",)),
    "no such partition": Mistake("partition: cpu, time: 10, r", "partition: cup, time: 10, r", ("cup", "cpu")),
    "a time in words": Mistake("time: 10, cpus", "time: soon, cpus", ("pipeline.yaml:17", "time", "soon", "minutes")),
    "a misspelled resource": Mistake("cpus_per_task", "cpu_per_task", ("cpu_per_task", "cpus_per_task")),
    "an unknown executor": Mistake("{type: slurm, partition: cpu, time: 10, c", "{type: slrum, c", ("slrum", "slurm")),
    "stagger's own option": Mistake("cpus_per_task: 1", "sbatch: {array: 1-10}", ("array",)),
    "an unset variable": Mistake("run_dir: run", "run_dir: ${NOWHERE}/run", ("NOWHERE",)),
    "no run directory": Mistake("run_dir: run\n", "", ("run_dir",)),
    "shards committed into one file": Mistake("    tasks: 2", "    tasks: 2\n    commit: shard", ("{stem}",)),
}  # fmt: skip

#: Words that no message for a user has.
NEVER = ("Traceback", "pydantic", "Input should", "validation error", "<class")


def test_each_mistake_is_refused_before_a_job_is_submitted(slurm_cli: Cli, folder: Path) -> None:
    before = jobs(slurm_cli)
    wrong: list[str] = []
    for what, mistake in MISTAKES.items():
        assert PIPELINE.count(mistake.old) == 1, what
        (folder / "pipeline.yaml").write_text(PIPELINE.replace(mistake.old, mistake.new))
        wrong += faults(slurm_cli("launch", "pipeline.yaml"), what, *mistake.says)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    for arguments, says in {
        ("launch", "pipline.yaml"): ("pipline.yaml",),
        ("lanch", "pipeline.yaml"): ("lanch", "launch"),
        ("launch", "pipeline.yaml", "--stage", "clean"): ("--stage", "stagger retry"),
        ("launch", "pipeline.yaml", "--limit", "0"): ("--limit",),
        ("launch", "pipeline.yaml", "--wiat"): ("--wiat", "--wait"),
        ("launch", "input"): ("input",),
        ("status", "runn"): ("runn", "did you mean run?"),
        ("logs", "run", "--stage", "claen"): ("claen", "clean"),
        ("cancel", "clean"): ("clean",),
        ("retry", "input"): ("input",),
    }.items():
        wrong += faults(slurm_cli(*arguments), " ".join(arguments), *says)
    (folder / "clean").mkdir(exist_ok=True)
    (folder / "clean" / "00100.jsonl.zst").write_bytes(b"from a run of before")
    ran = slurm_cli("launch", "pipeline.yaml")
    wrong += faults(ran, "outputs of another run", "clean", "00100.jsonl.zst", "--overwrite")
    assert not wrong, "\n".join(wrong)
    assert jobs(slurm_cli) == before


def faults(ran: Ran, what: str, *says: str) -> list[str]:
    """What is wrong with a refusal: its exit status, words that it lacks, or words that no user should see."""
    said = " ".join((ran.out + ran.err).split())
    found = [f"exit status {ran.status}"] * (ran.status != 2)
    found += [f"no {word!r}" for word in says if word not in said]
    found += [f"{word!r}" for word in NEVER if word in said]
    return [f"{what}: {', '.join(found)} in: {said}"] * bool(found)


def jobs(cli: Cli) -> set[str]:
    """The jobs that Slurm has ever had: an array is one, however many of its tasks have started."""
    found = slurm(cli, "sacct", "-X", "-n", "-a", "-P", "-o", "jobid", "-S", "2020-01-01")
    return {job.partition("_")[0] for job in found.split()}


def first_screen(ran: Ran) -> str:
    return "\n".join(ran.out.splitlines()[:24])


def test_a_run_that_fails_in_four_ways_is_mended_and_ends_like_an_undisturbed_one(slurm_cli: Cli, folder: Path) -> None:
    cli, file = slurm_cli, folder / "pipeline.yaml"
    file.write_text(PIPELINE.replace("cpus_per_task: 1", "cpus_per_task: 5000"))  # No node has so many.
    cli("launch", "pipeline.yaml", check=0)
    until(lambda: "4 failed" in cli("status", "run").out, "the ranks of the first stage to end")

    screen = first_screen(cli("status", "run", check=1))
    for named in (
        "KeyError", "'language'", "team_steps.py:7", "7,70",
        "ValueError", "'none'", "team_steps.py:14", "31",
        "SIGKILL", "55",
        "PartitionConfig", "sample",
    ):  # fmt: skip
        assert named in screen, f"{named} is not on the first screen:\n{screen}"

    (folder / "team_steps.py").write_text(MENDED)
    file.write_text(PIPELINE)
    cli("cancel", "run", "--stage", "sample", check=0)
    cli("launch", "pipeline.yaml", "--wait", check=0)
    cli("status", "run", check=0)

    gone = folder / "clean" / "00013.jsonl.zst"
    gone.unlink()
    verified = cli("status", "run", "--verify", check=1)
    assert "13" in verified.out
    cli("retry", "run", "--lost", "--wait", check=0)
    assert "00013.jsonl.zst" in visible(folder / "clean")
    cli("status", "run", "--verify", check=0)
    compare(cli, folder)


def compare(cli: Cli, folder: Path) -> None:
    """Assert that the outputs equal those of the mended pipeline, undisturbed, on this machine."""
    text = PIPELINE.replace("run_dir: run", "run_dir: calm").replace("{path: clean}", "{path: calm-clean}")
    text = text.replace("{path: sample}", "{path: calm-sample}")
    lines = [line for line in text.splitlines() if "executor" not in line]
    (folder / "calm.yaml").write_text("\n".join([*lines, "executor: {type: local, workers: 2}", ""]))
    cli("launch", "calm.yaml", check=0)
    for stage in ("clean", "sample"):
        assert visible(folder / stage) == visible(folder / f"calm-{stage}")
