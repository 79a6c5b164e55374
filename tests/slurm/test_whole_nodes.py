"""Jobs that run ranks beside one another, on one node or on several: nothing is lost, whoever dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

from tests.conftest import documents, jsonl, output_ids, until
from tests.kit.runs import EVERYTHING, completions, counts, launches, status
from tests.slurm.conftest import Life, restarted, slurm


def job_output(life: Life, index: int = 0, launch: int = 1) -> str:
    array = launches(life.run)[launch - 1]["arrays"][0]["job_id"]
    return (life.run / "launches" / str(launch) / "slurm" / f"{array}_{index}.out").read_text()


def done(life: Life) -> set[int]:
    return {int(path.stem) for path in (life.run / "completions").glob("[0-9]*.json")}


def processes(life: Life, *words: str) -> list[int]:
    """The processes of the run whose command has all of these words."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                command = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if {"stagger.task", *words} <= set(command) and str(life.run) in " ".join(command):
                found.append(int(folder.name))
    return found


def test_a_job_runs_ranks_beside_one_another_and_status_tells_running_from_waiting_ranks(life: Life) -> None:
    executor = {"ranks_per_job": 6, "ranks_at_once": 2, "mem_per_cpu_gb": 0.5}
    life.launch({"my_steps:hold": {}}, executor=executor, tasks=12)
    for rank in (0, 1, 6, 7):
        life.begun(rank)
    until(lambda: counts(status(life.cli, life.run)) == (0, 0, 4, 8), "status to tell running from waiting ranks")
    asked = slurm(life.cli, "squeue", "-h", "-j", life.array, "-o", "%C %m %D").split("\n")[0].split()
    assert asked == ["2", "512M", "1"]
    life.flag.touch()
    life.finish()
    records = completions(life.run)
    assert [record["job"] for record in records] == [f"{life.array}_{rank // 6}" for rank in range(12)]
    assert len({record["pid"] for record in records}) == 4  # Each worker was started once.
    output = job_output(life)
    assert "ranks to run: 6, 2 at once, on " in output
    assert "all ranks have ended: 6 done" in output
    assert output.count("\n") == 2


def test_a_rank_that_outgrows_its_share_is_out_of_memory_and_gets_more(life: Life) -> None:
    life.launch(
        {"my_steps:need_memory": {"ranks": [1], "mb": 300}},
        executor={"ranks_per_job": 4, "ranks_at_once": 2, "mem_per_cpu_gb": 0.25},
        retries={"max": 1, "on": ["OUT_OF_MEMORY"]},
    )
    life.finish()
    failure = json.loads((life.run / "failures" / "00001.1.json").read_text())
    assert failure["kind"] == "OUT_OF_MEMORY"
    assert "its share of the job's is 256 MiB" in failure["error"]
    assert [record["attempt"] for record in completions(life.run)] == ["1", "2", "1", "1"]
    assert launches(life.run)[1]["arrays"][0]["memory_scale"] == 2.0


def test_killed_workers_cost_their_ranks_only_and_a_killed_crew_loses_nothing(life: Life) -> None:
    life.launch(
        {"my_steps:hold": {"ranks": [1, 7]}},
        executor={"ranks_per_job": 6, "ranks_at_once": 2},
        tasks=12,
        retries={"max": 3},
    )
    life.begun(1)
    begun = life.begun(7)
    until(lambda: len(done(life)) == 10, "the other ranks")
    begun.unlink()
    os.kill(life.pid(1), signal.SIGKILL)
    until(lambda: (life.run / "failures" / "00001.1.json").exists(), "the death of a worker to be recorded")
    (crew,) = processes(life, "6-11")
    os.kill(crew, signal.SIGKILL)
    until(lambda: len(launches(life.run)) == 2, "the end job to run both ranks again")
    life.flag.touch()
    life.finish()
    assert launches(life.run)[1]["ranks"] == "1,7"
    assert "was killed by SIGKILL" in job_output(life)


def test_at_its_time_limit_a_crew_stops_between_records_and_goes_on_after_a_requeue(life: Life) -> None:
    life.launch(
        {"my_steps:linger": {"first": 250}},
        executor={"time": 1, "ranks_per_job": 2, "ranks_at_once": 2},
        tasks=2,
        commit="shard",
        writer={"filename": "{stem}.jsonl"},
    )
    life.begun(1)
    slurm(life.cli, "scancel", "--batch", "--signal=USR2", f"{life.array}_0")
    until(lambda: restarted(life), "the job to start again")
    life.flag.touch()
    life.finish()
    failure = json.loads((life.run / "failures" / "00001.1.json").read_text())
    assert (failure["kind"], failure["signal"]) == ("interrupted", "SIGUSR2")
    log = (life.run / "logs" / "00001" / "1r1.log").read_text()
    assert "resumes after 2 shards, committed by attempt 1" in log
    assert "stopped by SIGUSR2; requeued (requeue 1)" in job_output(life)


def test_crews_on_several_nodes_stop_together_and_the_job_is_requeued_once(life: Life) -> None:
    life.launch(
        {"my_steps:dawdle": {"ranks": [2, 3]}},
        executor={"ranks_per_job": 4, "ranks_at_once": 2, "nodes_per_job": 2},
    )
    life.begun(2)
    life.begun(3)
    until(lambda: done(life) == {0, 1}, "the other ranks")
    slurm(life.cli, "scancel", "--batch", "--signal=TERM", f"{life.array}_0")
    until(lambda: restarted(life, 2) and restarted(life, 3), "the job to start again on both nodes")
    life.finish()
    output = job_output(life)
    assert output.count("requeued (requeue 1)") == 1
    # srun may end the slower of the two crews before it has said so.
    assert any(f"stopped by SIGTERM: 1 done, 1 stopped ({rank}), 0 not begun" in output for rank in (2, 3)), output
    assert [record["attempt"] for record in completions(life.run)] == ["1", "1", "1r1", "1r1"]
    failure = json.loads((life.run / "failures" / "00002.1.json").read_text())
    assert (failure["kind"], failure["signal"]) == ("interrupted", "SIGTERM")


def test_a_crew_that_dies_on_one_node_costs_its_ranks_only(life: Life) -> None:
    life.launch(
        {"my_steps:hold": {}},
        executor={"ranks_per_job": 4, "ranks_at_once": 2, "nodes_per_job": 2},
        retries={"max": 1},
    )
    for rank in range(4):
        life.begun(rank)
    parent = int(Path(f"/proc/{life.pid(1)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    until(lambda: subprocess.run(["kill", "-0", str(parent)], capture_output=True, check=False).returncode, "its death")
    life.flag.touch()
    life.finish()
    assert [record["attempt"] for record in completions(life.run)] == ["1", "2", "1", "2"]


def test_whole_nodes_with_as_many_ranks_at_once_as_they_have_room_for(life: Life) -> None:
    """The nodes of the test cluster have 1000 processors each, and less memory than Slurm believes."""
    life.launch(executor={"ranks_per_job": 4, "ranks_at_once": "auto", "cpus_per_task": 450}, tasks=4)
    until(lambda: counts(status(life.cli, life.run)) == (4, 0, 0, 0), "all ranks to be done")
    assert "ranks to run: 4, 2 at once, on " in job_output(life)
    shown = slurm(life.cli, "squeue", "-h", "--states=all", "-j", f"{life.array}_0", "-o", "%C %D")
    assert shown.split() == ["1000", "1"]
    assert output_ids(life.folder / "run-output") == EVERYTHING


def test_two_hundred_ranks_twenty_at_once_survive_kills_of_workers_of_a_crew_and_a_requeue(
    life: Life, tmp_path: Path
) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(200):
        (source / f"{number:03d}.jsonl").write_bytes(jsonl(documents(number * 25, 25)))
    held = [0, 1, 100]
    life.launch(
        {"my_steps:hold": {"ranks": held}},
        executor={"ranks_per_job": 100, "ranks_at_once": 20},
        source=str(source),
        tasks=200,
        retries={"max": 5},
    )
    begun = [life.begun(rank) for rank in held]
    holding = {life.pid(rank) for rank in held}
    for worker in sorted(set(processes(life, "-")) - holding)[::8]:
        with contextlib.suppress(ProcessLookupError):  # It has run out of ranks meanwhile.
            os.kill(worker, signal.SIGKILL)
    until(lambda: len(done(life) | failures(life)) >= 197, "all ranks but three to end")
    os.kill(life.pid(1), signal.SIGKILL)
    until(lambda: 1 in failures(life), "the death of its worker to be recorded")
    for path in begun[:2]:
        path.unlink()
    slurm(life.cli, "scontrol", "requeue", f"{life.array}_0")
    (crew,) = processes(life, "100-199")
    os.kill(crew, signal.SIGKILL)
    life.begun(0)
    life.begun(1)
    life.flag.touch()
    until(lambda: counts(status(life.cli, life.run)) == (200, 0, 0, 0), "all ranks to be done")
    assert output_ids(life.folder / "run-output") == sorted(f"doc-{number}" for number in range(5000))
    paths = (life.run / "completions" / f"{rank:05d}.json" for rank in range(200))
    attempts = [json.loads(path.read_text())["attempt"] for path in paths]
    assert [attempts[rank] for rank in held] == ["1r1", "1r1", "2"]
    assert attempts.count("1") > 150


def failures(life: Life) -> set[int]:
    return {int(path.name[:5]) for path in (life.run / "failures").glob("[0-9]*.json")}
