"""`stagger plan`: its table, recommendation and plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagger.cli.chart import check_plot
from stagger.errors import StaggerError
from stagger.start.herd import Herd, simulate
from tests.conftest import Bucket, Cli, PipelineFiles


def plan(cli: Cli, *arguments: str | int | Path) -> dict[str, Any]:
    (found,) = cli("plan", *arguments, "--json", check=0).json["plans"]
    assert isinstance(found, dict)
    return found


def rows(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["policies"]}


def test_the_default_for_8000_tasks(cli: Cli) -> None:
    row = rows(plan(cli, "--tasks", 8000))["uniform"]
    assert (row["window_s"], row["mean_per_s"], row["idle_core_h"]) == (180, 44.2, 200.0)
    (line,) = [line for line in cli("plan", "--tasks", 8000, check=0).out.splitlines() if line.startswith("uniform *")]
    assert line.split()[2:5] == ["180", "s", "44.2"]
    assert "200" in line.split()


def test_the_window_for_a_limit_is_found_and_recommended(cli: Cli) -> None:
    found = plan(cli, "--tasks", 8000, "--backend-limit", 3500, "--requests", 4)
    row = rows(found)["limit"]
    assert (row["policy"], row["window_s"], row["refused"]) == ("spread", 12, 0)
    assert row["idle_core_h"] == pytest.approx(13.3, abs=0.1)
    assert rows(found)["none"]["refused"] > 10_000
    assert found["recommended"] == {"start_policy": "spread", "randomize_start_duration": 12}
    assert found["steady_state_throttle"] == 420_000  # 0.8 * 3500 * 600 / 4


def test_what_is_recommended_can_be_pasted(cli: Cli, pipeline_file: PipelineFiles) -> None:
    """For a limit that needs a window of 800 s, a throttle is recommended instead, as keys of a pipeline file."""
    shown = cli("plan", "--tasks", 8000, "--backend-limit", 50, check=0).out
    pasted = yaml.safe_load(shown.partition("Recommended: ")[2].partition("\n")[2])
    assert pasted == {"start_policy": "spread", "randomize_start_duration": 300, "executor": {"workers": 3000}}
    pasted["executor"]["type"] = "slurm"
    ran = cli("launch", pipeline_file(tasks=8000, **pasted), "--dry-run", "--json", check=0)
    assert ran.json["stages"][0]["start"]["summary"].startswith(
        "the first 3,000 of 8,000 jobs start over 300 s (spread)"
    )


def test_a_files_requests_are_counted_and_its_own_settings_are_a_row(
    cli: Cli, bucket: Bucket, shards: Path, pipeline_file: PipelineFiles
) -> None:
    cli.env.update(bucket.env)
    bucket.files.put([str(path) for path in sorted(shards.iterdir())], f"{bucket.name}/input/")
    executor = {"type": "slurm", "cpus_per_task": 2, "workers": 6}
    places: dict[str, Any] = {
        "source": f"{bucket.url}/input",
        "output": f"{bucket.url}/output",
        "run_dir": f"{bucket.url}/run",
    }
    file = pipeline_file(tasks=12, executor=executor, backend_limit=10, **places)
    found = plan(cli, file)
    assert (found["stage"], found["jobs"], found["throttle"]) == ("run", 12, 6)
    assert found["requests"] == 7  # Plan, plan, shard, claim, output, completion, log.
    assert found["launch"] == {"name": "limit", "policy": "spread", "window_s": 6}  # 6 * 6 / (0.8 * 10)
    assert found["recommended"] == {"start_policy": "spread", "backend_limit": 10.0}
    assert found["cores_per_job"] == 2
    throttled = plan(cli, file, "--throttle", 3)
    assert (throttled["launch"]["window_s"], throttled["hold_s"]) == (3, 3)  # 3 * 6 / (0.8 * 10)
    own = plan(cli, file, "--set", "randomize_start_duration=77", "--requests", 9)
    assert (own["requests"], rows(own)["as set"]["window_s"], own["launch"]["name"]) == (9, 77, "as set")
    other = plan(cli, file, "--window", 99)
    assert (rows(other)["window"]["window_s"], other["launch"]) == (99, found["launch"])


def test_a_local_file_is_planned_as_it_would_start_on_slurm(cli: Cli, pipeline_file: PipelineFiles) -> None:
    shown = cli("plan", pipeline_file(tasks=8), check=0).out
    assert "8 jobs of 600 s, 0 remote requests per job" in shown
    assert "starts per second" in shown


def test_stages_are_planned_apart_and_one_can_be_chosen(
    cli: Cli, bucket: Bucket, shards: Path, pipeline_file: PipelineFiles
) -> None:
    cli.env.update(bucket.env)
    file = pipeline_file(tasks=4, executor={"type": "slurm"})
    text = json.loads(file.read_text())
    first, last = text.pop("pipeline"), f"{bucket.url}/last"
    between = f"{bucket.url}/between"
    text["stages"] = [
        {"name": "one", "pipeline": [first[0], {"write_jsonl": {"path": between}}]},
        {
            "name": "two",
            "depends": ["one"],
            "pipeline": [{"read_jsonl": {"path": between}}, {"write_jsonl": {"path": last}}],
        },
    ]
    file.write_text(json.dumps(text))
    both = cli("plan", file, "--json", check=0).json["plans"]
    # Input that is not written yet counts as one shard per rank; each writer's output counts as one request.
    assert [(one["stage"], one["requests"]) for one in both] == [("one", 1), ("two", 2)]
    assert plan(cli, file, "--stage", "two") == both[1]
    assert "name one with --stage" in cli("plan", file, "--plot", "plot.png", check=2).err
    assert "There is no stage 'tow'" in cli("plan", file, "--stage", "tow", check=2).err
    cli("plan", file, "--stage", "one", "--plot", "plot.png", check=0)


def test_the_row_of_the_launch_is_marked_and_only_that(cli: Cli) -> None:
    """Only one row is marked, even if several are equal, or --window adds a row."""
    for arguments, name in ((("--tasks", 1), "none"), (("--tasks", 8, "--window", 77), "uniform")):
        shown = cli("plan", *arguments, check=0).out
        assert [line.split()[0] for line in shown.splitlines() if " * " in line[:10]] == [name]


def test_places_that_are_kept_are_idle(cli: Cli) -> None:
    """1000 jobs of 5 s: each holds its slot for the window, or the throttle is as small as the limit requires."""
    options = ("--tasks", 1000, "--throttle", 500, "--backend-limit", 50, "--task-time", 5)
    found = plan(cli, *options)
    row = rows(found)["limit"]
    assert (row["window_s"], row["refused"]) == (50, 0)
    assert row["idle_core_h"] == pytest.approx((500 * 25 + 500 * 15 + 1000 * 45) / 3600, abs=0.01)
    recommended = found["recommended"]
    assert recommended == {"start_policy": "spread", "randomize_start_duration": 5, "executor": {"workers": 50}}
    herd = Herd(1000, "spread", 5, 4, 50, throttle=50, task_s=5)
    assert simulate(herd).refused == 0
    assert simulate(Herd(**{**vars(herd), "window_s": 50, "throttle": 500})).refused > 1000


@pytest.mark.parametrize(
    "options", [("--task-time", 0), ("--backend-limit", 1e9), ("--requests", 0, "--backend-limit", 5)]
)
def test_the_ends_of_the_scales_have_plans_too(cli: Cli, options: tuple[str | float, ...]) -> None:
    for tasks in (1, 2, 50):
        assert "nan" not in cli("plan", "--tasks", tasks, *map(str, options), check=0).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give a pipeline file, or a number of tasks: stagger plan --tasks 8000"),
        (("--tasks", "0"), "--tasks: expected a whole number"),
        (("--tasks", "8", "--backend-limit", "-1"), "--backend-limit: expected a number from 0.1"),
        (("--tasks", "8", "--backend-limit", "inf"), "--backend-limit: expected a number from 0.1"),
        (("--tasks", "8", "--backend-limit", "nan"), "--backend-limit: expected a number from 0.1"),
        (("--tasks", "8", "--task-time", "inf"), "--task-time: expected a number from 0"),
        (("--tasks", "8", "--stage", "one"), "--stage needs a pipeline file; give one."),
        (("--tasks", "8", "--set", "tasks=9"), "--set needs a pipeline file; give one."),
        (("--tasks", "8", "--plot", "plot.gif"), "a plot is a .png or .svg file"),
        (("--tasks", "8", "--plot", "nowhere/plot.png"), "No such file or directory"),
        (("nothing.yaml",), "There is no file nothing.yaml"),
    ],
)
def test_mistakes_are_one_sentence(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    ran = cli("plan", *arguments, check=2)
    assert said in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(("name", "magic"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")])
def test_a_plot_is_drawn(cli: Cli, tmp_path: Path, name: str, magic: bytes) -> None:
    cli("plan", "--tasks", 100, "--backend-limit", 20, "--plot", name, check=0)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(StaggerError, match=r"pip install 'stagger-slurm\[plot\]'"):
        check_plot("plot.png")


def test_the_document_holds_the_arrivals(cli: Cli) -> None:
    row = rows(plan(cli, "--tasks", 100, "--backend-limit", 20))["spread"]
    assert sum(row["starts_per_second"]) == 100
    assert sum(row["requests_per_second"]) == 400 + row["refused"]
    json.dumps(row)
