"""Runs on this machine, from the command line: what is done, what fails, what dies, and what a rerun does."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, PipelineFiles, contents, missing, output_ids, until

EVERYTHING = sorted(f"doc-{i}" for i in range(600))


def status(cli: Cli, run: Path | str) -> dict[str, Any]:
    (stage,) = cli("status", run, "--json").json["stages"]
    return dict(stage)


def counts(stage: dict[str, Any]) -> tuple[int, int, int, int]:
    running, pending = stage["running"] + stage["sleeping"], stage["pending"] + stage["requeued"]
    assert stage["done"] + stage["failed"] + running + pending == stage["tasks"]
    return stage["done"], stage["failed"], running, pending


@pytest.mark.parametrize("shard_by", ["count", "bytes"])
@pytest.mark.parametrize("compression", ["zstd", "gzip", None])
def test_every_document_arrives_once(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shard_by: str, compression: str | None
) -> None:
    file = pipeline_file(shard_by=shard_by, tasks=5, compression=compression)
    out = cli("launch", file, check=0).out
    assert f"The result is in {tmp_path}/run-output" in out
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    suffix = {"zstd": ".zst", "gzip": ".gz", None: ""}[compression]
    assert sorted(contents(tmp_path / "run-output")) == [f"{rank:05d}.jsonl{suffix}" for rank in range(5)]
    stage = status(cli, tmp_path / "run")
    assert counts(stage) == (5, 0, 0, 0)
    assert (stage["records_in"], stage["records_out"]) == (600, 600)
    assert stage["bytes_out"] == sum(map(len, contents(tmp_path / "run-output").values()))


def test_the_run_directory_is_as_described(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(), check=0)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["schema"] == 1
    assert (run / "plan" / record["fingerprint"]).is_file()
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert sorted(path.name for path in (run / "completions").iterdir()) == [f"{rank:05d}.json" for rank in range(4)]
    assert not (run / "failures").exists()
    assert not (run / "lock").exists()
    assert "rank 2" in (run / "logs" / "00002" / "1.log").read_text()
    launch = json.loads((run / "launches" / "1" / "launch.json").read_text())
    assert (launch["executor"], launch["ranks"], launch["window_s"]) == ("local", "0-3", 0)
    completion = json.loads((run / "completions" / "00001.json").read_text())
    assert completion["fingerprint"] == record["fingerprint"]
    assert (completion["attempt"], completion["delay_s"]) == ("1", 0)
    assert completion["script_started"] <= completion["started"] <= completion["first_read"] <= completion["ended"]
    assert completion["steps"][0]["records"] == completion["outputs"][0]["records"] == 150
    stats = json.loads((run / "stats.json").read_text())
    assert (stats["done"], stats["missing_ranks"], stats["records_out"]) == (4, "", 600)
    report = (run / "report.html").read_text()
    assert "4 of 4 ranks done" in report
    assert "<td>read_jsonl</td><td>600</td>" in report


def test_what_is_done_is_not_run_again(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 2, check=0)
    assert counts(status(cli, tmp_path / "run")) == (2, 0, 0, 2)
    before = contents(tmp_path / "run" / "completions")
    cli("launch", file, check=0)
    after = contents(tmp_path / "run" / "completions")
    assert {name: after[name] for name in before} == before
    assert len(after) == 4
    cli("launch", file, check=0)
    assert not (tmp_path / "run" / "launches" / "3").exists()
    assert contents(tmp_path / "run" / "completions") == after


def test_a_failing_rank_stops_no_other_and_is_found(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:fail_on": {"ranks": [1, 3], "flag": str(flag)}},), tasks=6)
    ran = cli("launch", file, check=1)
    assert f"2 ranks of {tmp_path}/run failed" in ran.err
    assert "stagger logs" in ran.err
    assert "stagger retry" in ran.err
    assert sorted(contents(tmp_path / "run-output")) == [f"{rank:05d}.jsonl.zst" for rank in (0, 2, 4, 5)]
    stage = status(cli, tmp_path / "run")
    assert counts(stage) == (4, 2, 0, 0)
    assert stage["failed_ranks"] == [1, 3]
    assert stage["reasons"] == {"ValueError in my_steps:fail_on": 2}
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["missing_ranks"] == "1,3"
    failure = json.loads((tmp_path / "run" / "failures" / "00003.1.json").read_text())
    assert failure["error"] == "ValueError in my_steps:fail_on: rank 3 cannot go on"
    assert "Traceback" in failure["traceback"]
    logs = cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "rank 1: ValueError in my_steps:fail_on: rank 1 cannot go on" in logs

    flag.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cli.folder = elsewhere
    cli("retry", tmp_path / "run", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    attempts = [json.loads(data)["attempt"] for data in contents(tmp_path / "run" / "completions").values()]
    assert attempts == ["1", "2", "1", "2", "1", "1"]
    assert (tmp_path / "run" / "logs" / "00001" / "1.log").exists()
    assert counts(status(cli, tmp_path / "run")) == (6, 0, 0, 0)


def test_a_killed_task_leaves_no_output_and_costs_its_rank_only(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    cli("launch", pipeline_file("undisturbed"), check=0)
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:kill_on": {"ranks": [0, 2], "flag": str(flag)}},))
    ran = cli("launch", file, check=1)
    assert "killed by SIGKILL" in ran.err
    visible = [name for name in contents(tmp_path / "run-output") if not name.startswith(".")]
    assert visible == ["00001.jsonl.zst", "00003.jsonl.zst"]
    stage = status(cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"], stage["reasons"]) == ((2, 2, 0, 0), [0, 2], {"killed": 2})
    flag.touch()
    before = contents(tmp_path / "run" / "completions")
    cli("retry", tmp_path / "run", check=0)
    assert contents(tmp_path / "run-output") == contents(tmp_path / "undisturbed-output")
    after = contents(tmp_path / "run" / "completions")
    assert {name: after[name] for name in before} == before


def test_a_worker_that_somebody_stopped_has_failed_its_rank(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"ranks": [1], "flag": str(flag)}},), tasks=3)
    running = cli.start("launch", file)
    until((tmp_path / "flag-1").exists, "rank 1 to hold")
    log = (tmp_path / "run" / "logs" / "00001" / "1.log").read_text()
    os.kill(int(log.partition("job local-")[2].split()[0]), signal.SIGTERM)
    flag.touch()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "ended with exit status 143" in err
    stage = status(cli, tmp_path / "run")
    assert (counts(stage), stage["failed_ranks"]) == ((2, 1, 0, 0), [1])


def test_workers_that_die_one_after_another_do_not_hang_the_run(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(steps=({"my_steps:kill_on": {"ranks": list(range(12))}},), tasks=12)
    cli("launch", file, check=1)
    assert counts(status(cli, tmp_path / "run")) == (0, 12, 0, 0)


def test_status_is_true_while_it_runs_and_ctrl_c_leaves_a_run_that_goes_on(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"ranks": [2, 3], "flag": str(flag)}},), tasks=6)
    running = cli.start("launch", file)
    until(lambda: (tmp_path / "flag-2").exists() and (tmp_path / "flag-3").exists(), "both workers to hold")
    until(lambda: counts(status(cli, tmp_path / "run")) == (2, 0, 2, 2), "status to say 2 done, 2 running, 2 pending")
    os.kill(running.pid, signal.SIGINT)
    flag.touch()  # The holding step sleeps in a loop of its own: the signal is seen at its next document.
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines()[-1] == "stagger: stopped by SIGINT; what is done stays done, and the next launch continues"
    assert "Fatal" not in err
    assert counts(status(cli, tmp_path / "run")) == (2, 0, 0, 4)
    assert not any(name.startswith(".") for name in contents(tmp_path / "run-output"))
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_worker_that_ignores_ctrl_c_is_killed(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file(steps=({"my_steps:hold": {"ranks": [0], "flag": str(tmp_path / "flag")}},), tasks=1)
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the worker to hold")
    os.kill(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert subprocess.run(["pgrep", "-f", str(tmp_path / "run")], check=False).returncode == 1
    assert counts(status(cli, tmp_path / "run")) == (0, 0, 0, 1)


def test_workers_end_when_the_launcher_is_killed(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},), tasks=2)
    running = cli.start("launch", file)
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "both workers to hold")
    running.kill()
    running.wait(timeout=60)
    # The steps hold on, and never look whether they should stop.
    until(
        lambda: subprocess.run(["pgrep", "-f", f"stagger.task.*{tmp_path}"], check=False).returncode,
        "the workers to end",
    )
    flag.touch()
    assert counts(status(cli, tmp_path / "run")) == (0, 0, 0, 2)
    cli("launch", file, check=0)  # The dead launcher's lock is taken over.
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_of_two_launches_at_once_one_refuses_and_names_the_other(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},))
    first = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the first launch to run")
    for command in (("launch", file), ("retry", tmp_path / "run")):
        second = cli(*command, check=2)
        assert f"{tmp_path}/run is in use by process {first.pid} of " in second.err
    flag.touch()
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_many_launches_at_the_same_moment(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},), tasks=2)
    all_of_them = [cli.start("launch", file) for _ in range(6)]
    until(lambda: sum(p.poll() is not None for p in all_of_them) == 5, "five of six to refuse")
    flag.touch()
    ended = [(process.communicate(timeout=60), process.returncode) for process in all_of_them]
    assert sorted(code for _, code in ended) == [0, 2, 2, 2, 2, 2]
    assert all("is in use by process" in err for (_, err), code in ended if code == 2)
    assert not (tmp_path / "run" / "launches" / "2").exists()


def test_cancel_stops_a_local_run(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},))
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the run to hold")
    assert f"stopped process {running.pid}" in cli("cancel", tmp_path / "run", check=0).out
    flag.touch()
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert "nothing is queued or running" in cli("cancel", tmp_path / "run", check=0).out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": 5}, "tasks: 4 before, 5 now"),
        ({"shard_by": "bytes"}, "shard_by: count before, bytes now"),
        ({"steps": ({"my_steps:Upper": {"suffix": "!"}},)}, "steps: 2 before, 3 now"),
        ({"compression": "gzip"}, "compression='zstd'.* before, write_jsonl.*compression='gzip'.* now"),
    ],
)
def test_another_pipeline_in_the_same_run_directory_is_refused(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    import re

    cli("launch", pipeline_file(), check=0)
    before = contents(tmp_path / "run" / "completions")
    err = cli("launch", pipeline_file(**change), check=2).err
    assert re.search(said, err)
    assert "new run_dir" in err
    assert contents(tmp_path / "run" / "completions") == before


def test_changed_input_is_refused_and_retry_goes_on_with_the_old(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 2, check=0)
    (shards / "new.jsonl").write_text('{"text": "new", "id": "new"}\n')
    assert "input: new.jsonl is new" in cli("launch", file, check=2).err
    cli("retry", tmp_path / "run", check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_shard_that_changed_since_the_plan_fails_its_rank(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    file = pipeline_file()
    cli("launch", file, "--limit", 1, check=0)
    with (shards / "shard-06.jsonl").open("a") as shard:
        shard.write('{"text": "late", "id": "late"}\n')
    (shards / "shard-03.jsonl").unlink()
    cli("retry", tmp_path / "run", check=1)
    assert status(cli, tmp_path / "run")["failed_ranks"] == [2, 3]
    logs = cli("logs", tmp_path / "run", "--failed", check=0).out
    assert "shard-06.jsonl has changed" in logs
    assert "shard-03.jsonl is gone" in logs


def test_an_error_is_not_swallowed_by_a_step_that_goes_on_whatever_happens(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A signal asks the rank to stop; a step that catches every Exception must not turn that into success."""
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}}, "my_steps:swallow"), tasks=1)
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the rank to hold")
    os.kill(running.pid, signal.SIGTERM)
    flag.touch()
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert counts(status(cli, tmp_path / "run")) == (0, 0, 0, 1)
    assert not (tmp_path / "run-output" / "00000.jsonl.zst").exists()


def test_a_local_run_sleeps_only_when_asked_to(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(tasks=6, randomize_start_duration=1), check=0)
    records = [json.loads(data) for data in contents(tmp_path / "run" / "completions").values()]
    assert {record["window_s"] for record in records} == {1}
    assert {record["delay_s"] for record in records} <= {0, 1}
    by_worker = {record["pid"]: record["delay_s"] for record in records}
    assert all(by_worker[record["pid"]] == record["delay_s"] for record in records)
    for record in records:
        assert record["started"] - record["script_started"] >= record["delay_s"]


def test_stages_run_in_order_and_only_when_what_they_need_is_done(
    cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles
) -> None:
    flag = tmp_path / "flag"
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {
            "name": "first",
            "tasks": 3,
            "pipeline": [
                source,
                {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}},
                {"write_jsonl": {"path": str(tmp_path / "middle")}},
            ],
        },
        {
            "name": "second",
            "depends": ["first"],
            "tasks": 2,
            "pipeline": [
                {"read_jsonl": {"path": str(tmp_path / "middle")}},
                {"write_jsonl": {"path": str(tmp_path / "end")}},
            ],
        },
    ]
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps({"name": "p", "run_dir": str(tmp_path / "run"), "stages": stages}))
    dry = cli("launch", file, "--dry-run", "--json", check=0).json
    assert [(stage["name"], stage["shards"]) for stage in dry["stages"]] == [("first", 12), ("second", None)]
    assert "second: starts when first is done" in cli("launch", file, check=1).err
    assert list((tmp_path / "end").iterdir()) == []
    flag.touch()
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING
    document = cli("status", tmp_path / "run", "--json", check=0).json
    assert [(stage["name"], stage["done"]) for stage in document["stages"]] == [("first", 3), ("second", 2)]
    assert (tmp_path / "run" / "second" / "completions" / "00001.json").exists()
    # What the first stage wrote has been read; what the second wrote is the result.
    (tmp_path / "middle" / "00001.jsonl.zst").unlink()
    cli("retry", tmp_path / "run", check=0)
    (tmp_path / "end" / "00001.jsonl.zst").unlink()
    assert "end/00001.jsonl.zst" in cli("retry", tmp_path / "run", check=1).err


def test_a_stage_does_not_read_what_is_incomplete(cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles) -> None:
    flag = tmp_path / "flag"
    middle = tmp_path / "middle"
    failing = {"my_steps:fail_on": {"ranks": [0], "flag": str(flag)}}
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {"name": "first", "tasks": 3, "pipeline": [source, {"write_jsonl": {"path": str(middle)}}]},
        {"name": "between", "tasks": 1, "pipeline": [source, failing]},
        {
            "name": "last",
            "depends": ["first", "between"],
            "pipeline": [{"read_jsonl": {"path": str(middle)}}, {"write_jsonl": {"path": str(tmp_path / "end")}}],
        },
    ]
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "run_dir": "run", "stages": stages}))
    cli("launch", "p.yaml", check=1)
    flag.touch()
    kept = (middle / "00002.jsonl.zst").read_bytes()
    (middle / "00002.jsonl.zst").unlink()
    assert "middle/00002.jsonl.zst" in cli("retry", "run", check=1).err
    assert list((tmp_path / "end").iterdir()) == []
    (middle / "00002.jsonl.zst").write_bytes(kept)
    cli("retry", "run", check=0)
    assert output_ids(tmp_path / "end") == EVERYTHING


def test_a_log_can_be_followed_and_holds_all_that_a_step_prints(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "talk.py").write_text(
        "import os, sys, warnings\n"
        "from loguru import logger\n"
        "def talk(data, rank, world_size):\n"
        "    print('printed'); logger.info('logged'); os.system('echo from a child'); warnings.warn('warned')\n"
        "    sys.stderr.write('to stderr\\n')\n"
        "    yield from data\n"
    )
    flag = tmp_path / "flag"
    file = pipeline_file(steps=("talk:talk", {"my_steps:hold": {"flag": str(flag)}}), tasks=1)
    running = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the rank to hold")
    follower = cli.start("logs", tmp_path / "run", "--rank", "0", "--follow")
    assert follower.stdout is not None
    text = follower.stdout.readline()
    flag.touch()
    running.communicate(timeout=60)
    text += follower.stdout.read()
    follower.communicate(timeout=60)
    for said in ("rank 0, attempt 1", "printed", "logged", "from a child", "warned", "to stderr", "600 records in"):
        assert said in text
    assert "There is no rank 7" in cli("logs", tmp_path / "run", "--rank", "7", check=2).err


def test_a_full_disk_fails_the_rank_and_leaves_nothing(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)], check=False).returncode:
        missing("the right to mount a small file system")
    try:
        ran = cli("launch", pipeline_file(output=str(small), compression=None, tasks=2), check=1)
        assert "2 ranks" in ran.err
        assert list(small.iterdir()) == []
        assert "No space left on device" in cli("logs", tmp_path / "run", "--failed").out
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_outputs_that_vanished_are_never_passed_over(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file()
    cli("launch", file, check=0)
    (tmp_path / "run-output" / "00001.jsonl.zst").unlink()
    with (tmp_path / "run-output" / "00002.jsonl.zst").open("ab") as output:
        output.write(b"x")
    for command in (("launch", file), ("retry", tmp_path / "run")):
        err = cli(*command, check=1).err
        assert "2 of the outputs of ranks that are done are gone or changed" in err
        assert "run-output/00001.jsonl.zst" in err
    for rank in (1, 2):
        (tmp_path / "run" / "completions" / f"{rank:05d}.json").unlink()
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_a_source_without_shards(cli: Cli, tmp_path: Path, pipeline_file: PipelineFiles) -> None:
    steps = [{"my_steps:numbers": {"count": 3}}, {"write_jsonl": {"path": "relative"}}]
    content = {"name": "n", "run_dir": "r", "tasks": 2, "pipeline": steps}
    (tmp_path / "n.yaml").write_text(json.dumps(content))
    cli("launch", "n.yaml", "--limit", 1, check=0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cli.folder = elsewhere
    cli("retry", tmp_path / "r", check=0)
    assert output_ids(tmp_path / "relative") == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]


@pytest.mark.parametrize(
    ("steps", "tasks", "said"),
    [
        (({"write_jsonl": {"path": "x", "filename": "all.jsonl"}},), 4, "is the same for all 4 ranks"),
        (({"write_jsonl": {"path": "x", "filename": "../{rank}"}},), 1, "has a '/'"),
        (({"read_jsonl": {"path": "input"}},), 1, "Step 2 (read_jsonl) is a reader"),
        (({"my_steps:Upper": {"suffix": {1: 2}}},), 1, "do not fit into JSON"),
        (({"my_steps:Upper": {"suffix": float("inf")}},), 1, "do not fit into JSON"),
        (("quits:step",), 1, "'quits:step' cannot be imported: SystemExit"),
    ],
)
def test_what_would_lose_data_is_refused_at_launch(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, steps: tuple[Any, ...], tasks: int, said: str
) -> None:
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)\n")
    file = pipeline_file(steps=steps, tasks=tasks)
    text = file.read_text().replace('{"1": 2}', "{1: 2}").replace("Infinity", ".1e999")
    file.write_text(text)
    assert said in cli("launch", file, check=2).err
    assert not (tmp_path / "run").exists()


def test_a_sink_that_returns_nothing_leaves_nothing_unread(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "sink.py").write_text("def sink(data, rank, world_size):\n    pass\n")
    file = pipeline_file()
    content = json.loads(file.read_text())
    content["pipeline"].append("sink:sink")
    file.write_text(json.dumps(content))
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_an_error_that_a_step_swallows_fails_the_rank_all_the_same(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    whole = (shards / "shard-01.jsonl.gz").read_bytes()
    (shards / "shard-01.jsonl.gz").write_bytes(whole[:-20])
    cli("launch", pipeline_file(steps=("my_steps:swallow",)), check=1)
    assert status(cli, tmp_path / "run")["failed_ranks"] == [1]
    assert not (tmp_path / "run-output" / "00001.jsonl.zst").exists()
    assert "truncated" in cli("logs", tmp_path / "run", "--failed").out


def test_a_step_that_goes_to_another_folder_takes_no_output_along(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    (tmp_path / "go.py").write_text(
        "import os\ndef go(data, rank, world_size):\n    os.chdir('/')\n    yield from data\n"
    )
    file = pipeline_file(steps=("go:go",), output="relative", executor={"type": "local", "workers": 1})
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "relative") == EVERYTHING


def test_records_of_another_run_are_not_taken_for_this_ones(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, shards: Path
) -> None:
    cli("launch", pipeline_file(), check=0)
    (tmp_path / "run" / "run.json").unlink()
    (shards / "new.jsonl").write_text('{"text": "new", "id": "new"}\n')
    assert "has completion records of another run" in cli("launch", pipeline_file(), check=2).err


@pytest.mark.parametrize("left_behind", ["thread", "fork"])
def test_what_a_step_leaves_running_does_not_hang_the_run(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, left_behind: str
) -> None:
    (tmp_path / "leave.py").write_text(
        "import multiprocessing, os, signal, threading, time\n"
        "def thread(data, rank, world_size):\n"
        "    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    yield from data\n"
        "def fork(data, rank, world_size):\n"
        "    if rank == 1:\n"
        "        multiprocessing.get_context('fork').Process(target=time.sleep, args=(30,)).start()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    yield from data\n"
    )
    running = cli.start("launch", pipeline_file(steps=(f"leave:{left_behind}",)))
    assert running.wait(timeout=25) == (1 if left_behind == "fork" else 0)
    assert status(cli, tmp_path / "run")["failed_ranks"] == ([1] if left_behind == "fork" else [])
    for pipe in (running.stdout, running.stderr):
        assert pipe is not None
        pipe.close()


def test_a_second_ctrl_c_kills_the_workers_before_the_lock_is_gone(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(tmp_path / "flag")}},), tasks=2)
    running = cli.start("launch", file)
    until(lambda: (tmp_path / "flag-0").exists() and (tmp_path / "flag-1").exists(), "both workers to hold")
    os.kill(running.pid, signal.SIGINT)
    os.kill(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert subprocess.run(["pgrep", "-f", f"stagger.task.*{tmp_path}"], check=False).returncode == 1
    assert not (tmp_path / "run" / "lock").exists()


def test_a_damaged_record_is_named(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(), check=0)
    record = tmp_path / "run" / "completions" / "00002.json"
    record.write_bytes(record.read_bytes()[:50])
    assert f"{record} is damaged" in cli("status", tmp_path / "run", check=2).err
    record.write_text("{}")
    assert f"{record} is damaged (it has no 'fingerprint')" in cli("status", tmp_path / "run", check=2).err
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "schema None" in cli("status", tmp_path / "run", check=2).err
    assert "There is no run in" in cli("status", tmp_path, check=2).err
