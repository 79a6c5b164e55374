"""What a user is told of a run, and how a part of it is stopped or run again."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from stagger.cli import show
from stagger.errors import StaggerError
from stagger.executor.slurm_queue import SlurmJobs
from stagger.launch.cancel import stages_behind
from stagger.ranks import parse_ranks
from stagger.rundir.launch_records import ArrayRecord, EndJobRecord, SlurmLaunch
from stagger.rundir.stage_folder import StageFolder
from stagger.slurm import cluster
from stagger.slurm.answers import QueuedJob
from stagger.spec.changes import changed_spec
from stagger.spec.models import RunSpec
from stagger.status.efficiency import efficiency, sentences
from stagger.status.failed_ranks import cancelled_ranks
from stagger.status.stage_status import StageStatus, asleep, slowest
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.test_local import EVERYTHING, counts, status
from tests.test_slurm import SLURM, launches, slurm


def spec(executor: dict[str, Any], *names: str, **depends: list[str]) -> RunSpec:
    stages = [
        {"name": name, "pipeline": ["read_jsonl"], "executor": executor, "depends": depends.get(name, [])}
        for name in names
    ]
    return RunSpec.model_validate({"name": "p", "run_dir": "/run", "cwd": "/", "stages": stages})


def launch_record(number: int, ranks: str, *, ranks_per_job: int = 1, **more: Any) -> SlurmLaunch:
    return SlurmLaunch(
        launch=number,
        time=0.0,
        ranks=ranks,
        start_policy="uniform",
        window_s=60,
        settings="{}",
        ranks_per_job=ranks_per_job,
        resources={},
        log_dir="",
        arrays=(ArrayRecord("7", f"a-{number}", len(parse_ranks(ranks)), ranks),),
        finalize=EndJobRecord(None, f"end-{number}"),
        **more,
    )


# --- status ---


def test_who_sleeps_runs_waits_or_was_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks a job. One is asleep until the first rank of its job has a log of this very launch."""
    monkeypatch.setattr(cluster, "is_here", lambda: True)
    states = [("RUNNING", 61, "None"), ("RUNNING", 59, "None"), ("RUNNING", 60, "None")]
    states += [("PENDING", 0, "Priority"), ("PENDING", 0, "BeginTime"), ("COMPLETED", 9, "None")]
    jobs = [QueuedJob("7", i, state, "a-2", seconds, reason) for i, (state, seconds, reason) in enumerate(states)]
    slurm = SlurmJobs([])
    slurm.__dict__["known"] = defaultdict(list, {"a-2": jobs})
    folder = StageFolder(Storage(), str(tmp_path))
    stage: Any = None  # Slurm's jobs are found by their launch records alone.
    found = slurm.activity(stage, [launch_record(2, "0-11", ranks_per_job=2)])
    assert (found.running, found.pending, found.requeued) == ({0, 1}, {6, 7}, {8, 9})
    assert found.ranks == set(range(10))
    for log in ("00002/1.log", "00004/2.log"):
        (tmp_path / "logs" / log).parent.mkdir(parents=True)
        (tmp_path / "logs" / log).touch()
    assert asleep(folder, found.starting) == {2, 3}


def test_a_rank_that_was_cancelled_and_launched_again_is_not_cancelled() -> None:
    records = [launch_record(1, "0-9", cancelled_ranks="2-4"), launch_record(2, "3")]
    assert cancelled_ranks(records) == {2, 4}
    assert cancelled_ranks([launch_record(1, "0-3", cancelled="by stagger cancel")]) == {0, 1, 2, 3}
    assert cancelled_ranks([launch_record(1, "0-3")]) == set()


def test_only_what_takes_much_longer_than_most_is_called_slow() -> None:
    def took(*seconds: float) -> list[dict[str, Any]]:
        return [{"rank": rank, "started": 100.0, "ended": 100.0 + s} for rank, s in enumerate(seconds)]

    assert slowest(took(30, 31, 59, 29, 30, 300, 90, 70, 65, 30, 30, 30)) == [(5, 300.0), (6, 90.0), (7, 70.0)]
    assert slowest(took(1, 1, 1, 9)) == []  # Not worth a word.
    assert slowest([]) == []


@pytest.mark.parametrize(("terminal", "clears"), [(True, 2), (False, 0)])
def test_watch_draws_over_itself_on_a_terminal_and_leaves_slurm_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, clears: int
) -> None:
    def line(**states: Any) -> StageStatus:
        account = {"peak_1s": 0, "peak_100ms": 0, "span_s": 0.0, "per_second": []}
        return StageStatus("held", 3, **states, starts={"planned": account, "measured": account})

    seen = [[line(running=1, sleeping=1, pending=1, cancelled=1)], [line(done=3)]]
    clock = iter([0.0, 2.0, 100.0, 101.0])
    slept: list[float] = []
    monkeypatch.setattr(show, "status_of", lambda *_: seen.pop(0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    folder: Any = type("Folder", (), {"path": "/run"})
    assert show.watch_status(folder, folder, silent=False)[0].done == 3
    assert slept == [20.0]  # Looking took 2 s: a tenth of the time, at most.
    out = capsys.readouterr().out
    assert out.count(show.CLEAR) == clears
    assert "3 ranks: 1 running, 1 sleeping, 1 pending (1 cancelled)" in out


def front(cli: Cli, folder: Path, **scripts: str) -> Path:
    """A stand-in for Slurm's commands, which note how they were called; for what is asked, not for what happens."""
    place = folder / "front"
    place.mkdir()
    answers = {"sbatch": f"echo Submitted batch job $((9000 + $(wc -l < {place}/calls)))", "srun": "true"}
    answers |= {"scontrol": "echo MaxArraySize = 1001", "sacctmgr": "exit 1", "squeue": "true", "sacct": "true"}
    for name, script in {**answers, **scripts}.items():
        (place / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {place}/calls\n{script}\n')
        (place / name).chmod(0o755)
    (place / "calls").touch()
    cli.env["PATH"] = f"{place}:{cli.env['PATH']}"
    return place / "calls"


def test_slurm_is_asked_once_for_all_stages(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    calls = front(cli, tmp_path)
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [{"name": name, "tasks": 4, "pipeline": [source]} for name in "abc"]
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "run_dir": "run", "executor": SLURM, "stages": stages}))
    cli("launch", "p.yaml", check=0)  # Nothing of it is in the queue a moment later: all are lost.
    calls.write_text("")
    document = cli("status", tmp_path / "run", "--json", check=1).json
    assert [stage["reasons"] for stage in document["stages"]] == [{"lost": 4}] * 3
    asked = [line.partition(" ")[0] for line in calls.read_text().splitlines()]
    assert sorted(asked) == ["sacct", "squeue"]


# --- logs ---


def failing_run(cli: Cli, files: PipelineFiles, folder: Path, *ranks: int) -> Path:
    """A local run of four ranks of which some failed; they do not any more once the file that is returned exists."""
    flag = folder / "flag"
    cli("launch", files(steps=({"my_steps:fail_on": {"ranks": list(ranks), "flag": str(flag)}},)), check=1)
    return flag


def test_failures_are_told_by_kind_and_step_and_logs_by_attempt(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flag = failing_run(cli, pipeline_file, tmp_path, 1, 3)
    assert status(cli, run)["reasons"] == {"ValueError in my_steps:fail_on": 2}
    assert "failed: 1,3 (2 ValueError in my_steps:fail_on)" in cli("status", run, check=1).out
    said = cli("logs", run, "--failed", check=0).out.splitlines()
    assert said[0] == "rank 1: ValueError in my_steps:fail_on: rank 1 cannot go on"
    assert "    ValueError: rank 1 cannot go on" in said[1:17]
    flag.touch()
    cli("retry", run, check=0)
    assert cli("logs", run, "--failed", check=0).out == ""
    assert "rank 1, attempt 2" in cli("logs", run, "--rank", 1, check=0).out
    assert "rank 1 cannot go on" in cli("logs", run, "--rank", 1, "--attempt", "1", check=0).out
    assert "Rank 1 has no attempt 7; it has 1, 2." in cli("logs", run, "--rank", 1, "--attempt", "7", check=2).err
    assert "say which with --rank" in cli("logs", run, "--attempt", "1", check=2).err


# --- retry ---


def test_a_retry_of_single_ranks_touches_no_other(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flag = failing_run(cli, pipeline_file, tmp_path, 1, 2, 3)
    flag.touch()
    cli("retry", run, "--rank", "1,3")
    assert [launch["ranks"] for launch in launches(run)] == ["0-3", "1,3"]
    assert (counts(stage := status(cli, run)), stage["failed_ranks"]) == ((3, 1, 0, 0), [2])
    cli("retry", run, "--failed-only", check=0)
    assert launches(run)[-1]["ranks"] == "2"
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_failed_only_leaves_out_what_never_ran(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}},))
    cli("launch", file, "--limit", 2, check=1)
    flag.touch()
    cli("retry", run, "--failed-only", check=0)
    assert launches(run)[-1]["ranks"] == "1"
    assert counts(status(cli, run)) == (2, 0, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rank", "9"), "There is no rank 9: the ranks of run are 0 to 3."),
        (("--rank", "0-1"), "Ranks 0 of run are done; a completed rank is never run again."),
        (("--rank", "all"), "--rank all: write ranks like 3 or 3,17,40-52."),
        (("--stage", "rum"), "There is no stage 'rum'; did you mean 'run'?"),
        (("--set", "tasks=9"), "a run keeps its tasks; a retry can change executor"),
        (("--set", "pipeline=[]"), "launch with a new run_dir"),
        (("--set", "executor.wrokers=9"), "did you mean 'workers'"),
    ],
)
def test_a_wrong_retry_is_one_sentence_and_launches_nothing(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    failing_run(cli, pipeline_file, tmp_path, 1)
    before = (tmp_path / "run" / "run.json").read_bytes()
    ran = cli("retry", tmp_path / "run", *arguments, check=2)
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert len(launches(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_settings_that_a_retry_changes_stay(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    failing_run(cli, pipeline_file, tmp_path, 1).touch()
    cli("retry", run, "--set", "executor.workers=1", "--set", "retry_seconds=7", check=0)
    saved = json.loads((run / "run.json").read_text())["spec"]
    assert (saved["stages"][0]["executor"]["workers"], saved["retry_seconds"]) == (1, 7.0)
    assert json.loads(launches(run)[-1]["settings"])["retry_seconds"] == 7.0


def test_settings_of_one_stage_are_changed_alone() -> None:
    run = spec({"type": "slurm"}, "a", "b")
    changed = changed_spec(run, ["executor.mem_per_cpu_gb=8", "randomize_start_duration=5"], "b")
    assert changed.stages[0] == run.stages[0]
    assert changed.stages[1].randomize_start_duration == 5
    assert changed.stages[1].executor.model_dump()["mem_per_cpu_gb"] == 8
    with pytest.raises(StaggerError, match="a run keeps its depends"):
        changed_spec(run, ["depends=[]"], None)


# --- cancel ---


def test_who_waits_for_a_stage_also_by_way_of_others() -> None:
    run = spec({"type": "local"}, "a", "b", "c", "d", b=["a"], c=["b"])
    assert [stages_behind(run, stage) for stage in run.stages] == [["b", "c"], ["c"], [], []]


@pytest.mark.slurm
def test_single_ranks_are_cancelled_and_wait_for_a_retry(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    file = pipeline_file(
        steps=({"my_steps:hold": {"flag": str(flag)}},), executor=SLURM, tasks=6, randomize_start_duration=0
    )
    slurm_cli("launch", file, check=0)
    until(lambda: counts(status(slurm_cli, run)) == (0, 0, 6, 0), "all ranks to run")
    said = slurm_cli("cancel", run, "--rank", "1,3-4", check=0).out
    assert said == "cancelled ranks 1,3-4 (3 jobs)\n"
    assert launches(run)[0]["cancelled_ranks"] == "1,3-4"
    until(lambda: counts(status(slurm_cli, run)) == (0, 0, 3, 3), "the others to run on alone")
    assert status(slurm_cli, run)["cancelled"] == 3
    flag.touch()
    until(lambda: counts(status(slurm_cli, run)) == (3, 0, 0, 3), "the others to be done")
    until(lambda: not status(slurm_cli, run)["active"], "the end")
    slurm_cli("retry", run, "--failed-only", check=0)
    assert len(launches(run)) == 1  # None has failed.
    slurm_cli("retry", run, "--wait", "--set", "executor.mem_per_cpu_gb=0.2", check=0)
    assert (launches(run)[1]["ranks"], launches(run)[1]["resources"]["mem_per_cpu_gb"]) == ("1,3-4", 0.2)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


@pytest.mark.slurm
def test_ranks_in_the_job_of_a_cancelled_one_are_named(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    executor = {**SLURM, "ranks_per_job": 2}
    steps = ({"my_steps:hold": {"flag": str(flag)}},)
    slurm_cli("launch", pipeline_file(steps=steps, executor=executor, randomize_start_duration=0), check=0)
    until((tmp_path / "flag-2").exists, "rank 2 to run")
    said = slurm_cli("cancel", run, "--rank", "3", check=0).out
    assert said == "cancelled ranks 3 (1 job); ranks 2 were in the same jobs\n"
    until(lambda: status(slurm_cli, run)["cancelled"] == 2, "both to be cancelled")
    assert "Ranks 0 of run are queued or running" in slurm_cli("retry", run, "--rank", "0", check=2).err


@pytest.mark.slurm
def test_a_cancelled_stage_leaves_nothing_queued_and_says_what_will_not_begin(
    slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    source = {"read_jsonl": {"path": str(pipeline_file.shards)}}
    stages = [
        {"name": "a", "tasks": 4, "pipeline": [source]},
        {"name": "b", "tasks": 2, "pipeline": [source], "depends": ["a"]},
        {"name": "c", "tasks": 2, "pipeline": [source]},
    ]
    executor = {**SLURM, "time": "1-00:00:00"}
    content = {"name": "p", "run_dir": "run", "executor": executor, "stages": stages}
    (tmp_path / "p.yaml").write_text(json.dumps({**content, "randomize_start_duration": 80_000}))
    run = tmp_path / "run"
    slurm_cli("launch", "p.yaml", check=0)

    def asleep_now() -> list[int]:
        return [stage["sleeping"] for stage in slurm_cli("status", run, "--json").json["stages"]]

    until(lambda: asleep_now() == [4, 0, 2], "all to sleep")
    assert "4 sleeping" in slurm_cli("status", run).out
    said = slurm_cli("cancel", run, "--stage", "a", check=0).out.splitlines()
    assert said[-1] == f"b will not begin before a is done: stagger retry {run}"
    assert len(said) == 3  # The array and the job that ends it.
    until(lambda: asleep_now() == [0, 0, 2], "only c to be left")
    assert slurm_cli("cancel", run, check=0).out.count("cancelled Slurm job") == 2
    names = [job["name"] for path in "ac" for record in launches(run / path) for job in record["arrays"]]
    names += [record["finalize"]["name"] for path in "ac" for record in launches(run / path)]
    until(lambda: slurm(slurm_cli, "squeue", "--noheader", "--name", ",".join(names)) == "", "nothing to be left")


# --- efficiency ---


def completed(rank: int, job: str, **more: Any) -> dict[str, Any]:
    record = {"rank": rank, "job": job, "restart": 0, "script_started": 1000.0, "delay_s": 20.0, "ended": 1100.0}
    return {**record, "cpu_s": 60.0, "peak_rss_mb": 900, "retried": {"waited_s": 2.5}, **more}


def test_what_was_used_and_what_would_have_been_enough() -> None:
    """Ranks of one job share its time and its delay; the CPU seconds are each one's own."""
    records = [completed(0, "7_0"), completed(1, "7_0", ended=1200.0), completed(2, "7_1", peak_rss_mb=1600)]
    found = efficiency(records, {"cpus_per_task": 2, "mem_per_cpu_gb": 4.0, "time": "1:00:00"})
    assert found == {
        "jobs": 2,
        "cpu": {"used_s": 180.0, "asked_s": 600.0, "share": 0.3},
        "memory": {"peak_mib": 1600, "asked_mib": 8192.0, "share": 0.195},
        "time": {"longest_s": 200.0, "limit_s": 3600, "share": 0.056},
        "asleep_s": 40.0,
        "waiting_s": 7.5,
        "enough": {"mem_per_cpu_gb": 1.0, "time": "0-00:05:00"},
    }
    text = " ".join(sentences(found))
    assert "30% of the processors' time" in text
    assert "enough: mem_per_cpu_gb: 1.0, time: 0-00:05:00" in text


def test_efficiency_of_a_stage_that_asked_for_nothing_or_did_nothing() -> None:
    found = efficiency([completed(0, "7_0")], {"cpus_per_task": 1, "mem_per_cpu_gb": None, "time": None})
    assert (found["memory"]["share"], found["time"]["share"]) == (None, None)
    assert "no limit that was asked for" in " ".join(sentences(found))
    assert efficiency([], {}) == {}
    assert sentences({}) == []


@pytest.mark.slurm
def test_the_end_of_a_stage_says_what_it_used(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    run = tmp_path / "run"
    executor = {**SLURM, "mem_per_cpu_gb": 0.25}
    slurm_cli("launch", pipeline_file(executor=executor, randomize_start_duration=1), "--wait", check=0)
    found = json.loads((run / "stats.json").read_text())["efficiency"]
    assert (found["jobs"], found["memory"]["asked_mib"], found["time"]["limit_s"]) == (4, 256, 600)
    assert 0 < found["cpu"]["share"] <= 1
    assert 0 < found["memory"]["share"] < 1
    line = f"enough: mem_per_cpu_gb: {found['enough']['mem_per_cpu_gb']}, time: {found['enough']['time']}"
    assert line in slurm_cli("status", run, check=0).out
    assert line in (run / "report.html").read_text()
    (printed,) = (run / "launches" / "1" / "slurm").glob("finalize-*.out")
    assert line in printed.read_text()
