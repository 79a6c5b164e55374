"""Jobs are found whatever a site or a user does to their names, and a cancellation counts when Slurm accepts it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagger import terminal
from stagger.errors import RunFailed
from stagger.executor.slurm_queue import SlurmJobs
from stagger.launch import follow
from stagger.launch.launched import Launched
from stagger.rundir.end_record import EndRecord, write_end
from stagger.rundir.lock import Holder
from stagger.rundir.run_folder import RunFolder
from stagger.rundir.stage_folder import StageFolder, encode
from stagger.slurm import cluster
from stagger.slurm.answers import QueuedJob
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles
from tests.kit.records import completion, launch_record
from tests.kit.runs import SLURM, counts, launches, status
from tests.kit.slurm_front import front

LONG_AGO = "2020-01-01T00:00:00"


def now() -> str:
    return datetime.now().isoformat(timespec="seconds")


class Run:
    """A launched run of four ranks, whose jobs the stand-in for squeue describes."""

    def __init__(self, cli: Cli, files: PipelineFiles, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        self.queue = folder / "queue"
        self.queue.touch()
        self.calls = front(cli, folder, squeue=f"cat {self.queue}")
        self.path = folder / "run"
        self.file = files(executor=SLURM, retries={"max": 1})

    def launch(self, *options: str, **env: str) -> None:
        self.cli("launch", self.file, *options, check=0, **env)
        (record,) = launches(self.path)
        self.job, self.name = record["arrays"][0]["job_id"], record["arrays"][0]["name"]

    def stand_in(self, name: str, script: str) -> None:
        path = self.calls.parent / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{script}\n')
        path.chmod(0o755)

    def lists(self, *lines: str, name: str = "", script: str = "", at: str = "") -> None:
        """Make squeue list elements of the array, each given as `index|state|reason`."""
        rows = [line.split("|") for line in lines]
        at = at or now()
        text = (f"{self.job}|{i}|{state}|9:59|{at}|{why}|{name or self.name}|{script}" for i, state, why in rows)
        self.queue.write_text("\n".join(text) + "\n")

    def called(self, program: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(f"{program} ")]

    @property
    def status(self) -> dict[str, Any]:
        return status(self.cli, self.path)


@pytest.fixture
def run(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> Run:
    return Run(cli, pipeline_file, tmp_path)


RUNNING = tuple(f"{index}|RUNNING|None" for index in range(4))


def test_a_job_is_found_by_its_script_or_id_when_its_name_was_changed(run: Run) -> None:
    run.launch()
    for name, script in (
        (f"u0_{run.name}", "(null)"),
        ("x", f"/logs/.{run.name}.sh"),
        ("x", "(null)"),
    ):
        run.lists(*RUNNING, name=name, script=script)
        assert counts(run.status) == (0, 0, 4, 0), (name, script)
    (asked,) = run.called("squeue")[-1:]
    assert "--all" in asked
    assert "--name" not in asked


def test_another_job_that_got_the_same_id_is_not_taken_for_it(run: Run) -> None:
    """Neither shown nor cancelled: a job of that id from another time, or one that is no such array."""
    run.launch()
    run.lists(*RUNNING, name="x", script="/home/me/other.sh", at=LONG_AGO)
    assert counts(run.status) == (0, 4, 0, 0)
    run.lists("N/A|RUNNING|None", name="x", script="/home/me/other.sh")
    assert counts(run.status) == (0, 4, 0, 0)
    assert run.cli("cancel", run.path, check=0).out == "nothing is queued or running\n"
    assert not run.called("scancel")


def test_a_job_whose_launch_was_cut_off_before_it_was_recorded_is_found_by_its_name(run: Run) -> None:
    run.launch()
    path = run.path / "launches" / "1" / "launch.json"
    record = json.loads(path.read_text())
    record["arrays"][0]["job_id"] = None
    path.write_text(json.dumps(record))
    run.lists(*RUNNING, name=f"site:{run.name}")
    assert counts(run.status) == (0, 0, 4, 0)


def test_the_rest_of_an_array_that_somebody_cancelled_is_cancelled_not_lost(run: Run) -> None:
    """After `scancel --name`, squeue and sacct list the elements that had not started as one job without an index."""
    run.launch()
    run.lists("0|FAILED|NonZeroExitCode", "N/A|CANCELLED|None")
    assert run.status["reasons"] == {"CANCELLED": 3, "lost (FAILED)": 1}
    run.queue.write_text("")
    run.stand_in("sacct", f"echo '{run.job}_0|FAILED|1:0|n1'; echo '{run.job}|CANCELLED by 0|0:0|None assigned'")
    assert run.status["reasons"] == {"CANCELLED": 3, "lost (FAILED)": 1}


def test_the_signal_that_killed_a_job_is_named(run: Run) -> None:
    """Rank 1 was killed by the kernel, rank 2 died in a container's shell, rank 3 ended with a status of its own."""
    run.launch()
    ends = ("0|FAILED|0:9|n1", "1|FAILED|0:9|n1", "2|FAILED|139:0|n2", "3|FAILED|3:0|n2")
    run.stand_in("sacct", "; ".join(f"echo '{run.job}_{end}'" for end in ends))
    assert run.status["reasons"] == {"killed by SIGKILL": 2, "killed by SIGSEGV": 1, "lost (FAILED)": 1}
    (why, *_) = run.status["errors"]
    said = "its job was killed by SIGKILL: out of memory, unless someone killed it by hand"
    assert why == {"ranks": "0-1", "count": 2, "error": said, "sentence": said, "where": ""}


def test_a_job_that_slurm_ended_without_a_node_asked_for_too_much(run: Run) -> None:
    run.launch()
    run.stand_in("sacct", f"echo '{run.job}_[0-2]|FAILED|1:0|None assigned'; echo '{run.job}_3|FAILED|1:0|n2'")
    assert run.status["reasons"] == {"lost (FAILED)": 4}
    first, second = run.status["errors"]
    assert first["ranks"] == "0-2"
    assert "never got a node" in first["error"]
    assert "cpus_per_task" in first["error"]
    assert second["ranks"] == "3"


def test_status_says_why_jobs_wait_that_do_not_start_by_themselves(run: Run) -> None:
    run.launch()
    run.lists("0|PENDING|JobHeldUser", "1|PENDING|Priority", "2|PENDING|launch failed requeued held", "3|RUNNING|None")
    assert [(one["ranks"], one["reason"]) for one in run.status["waiting"]] == [
        ("0", "JobHeldUser"),
        ("2", "launch failed requeued held"),
    ]
    said = run.cli("status", run.path, check=3).out
    assert f"waiting: 1 rank (0): JobHeldUser: the job is held; release it with: scontrol release {run.job}" in said


def test_a_job_that_can_never_start_is_called_that_first_and_status_fails(run: Run) -> None:
    run.launch()
    run.lists("0|PENDING|AssocMaxJobsLimit", "1|RUNNING|None", "2|PENDING|PartitionConfig", "3|PENDING|PartitionConfig")
    found = run.status
    assert (found["stuck"], counts(found)) == (2, (0, 0, 1, 3))
    assert [(one["starts"], one["ranks"], one["count"]) for one in found["waiting"]] == [
        ("never", "2-3", 2),
        ("later", "0", 1),
    ]
    said = run.cli("status", run.path, check=1).out
    assert "1 running, 3 pending (2 can never start)" in said
    run.lists("0|PENDING|Priority", "1|PENDING|Priority", "2|PENDING|Resources", "3|PENDING|BeginTime")
    assert run.status["ordinary"] == {"Priority": 2, "Resources": 1}
    assert "3 pending (2 Priority, 1 Resources)" in run.cli("status", run.path, check=3).out
    assert "can never start: 2 ranks (2-3): PartitionConfig: it requests more than its partition allows" in said
    assert f"stagger cancel {run.path} --rank 2-3 " in said


def test_a_limit_of_no_jobs_at_all_never_passes(run: Run) -> None:
    run.launch()
    run.lists(*(f"{index}|PENDING|AssocMaxJobsLimit" for index in range(4)))
    assert [one["starts"] for one in run.status["waiting"]] == ["later"]
    record = "ClusterName=c Account=physics UserName=me(1) Partition= Priority=0\\n ParentAccount= DefAssoc=Yes"
    run.stand_in("scontrol", f'echo -e "{record}\\n MaxJobs=0(0) MaxSubmitJobs=\\nQOS Records"')
    (why,) = run.status["waiting"]
    assert (why["starts"], why["reason"], run.status["stuck"]) == ("never", "AssocMaxJobsLimit", 4)
    assert why["message"].startswith("your MaxJobs in the account physics is 0")


def test_a_waiting_command_says_at_once_why_ranks_never_start_and_gives_up_when_only_they_are_left(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.launch()
    run.lists("0|PENDING|JobHeldUser", *(f"{index}|PENDING|BadConstraints" for index in (1, 2, 3)))
    monkeypatch.setenv("PATH", run.cli.env["PATH"])
    monkeypatch.setattr(follow, "STUCK_S", 0.0)
    monkeypatch.setattr(follow, "FIRST_S", 0.01)
    said: list[str] = []

    def released(message: str) -> None:  # The held rank is awaited; somebody cancels it when told.
        said.append(message)
        run.lists(*(f"{index}|PENDING|BadConstraints" for index in (1, 2, 3)))

    monkeypatch.setattr(terminal.logger, "warning", released)
    folder, record = RunFolder.open(str(run.path))
    ended = follow.follow(folder, record, Launched(folder.path), None)
    why = "can never start: 3 ranks (1-3): BadConstraints: no node has what the job requests"
    assert len([line for line in said if "waiting: 1 rank (0): JobHeldUser" in line]) == 1
    assert said.count(f"run: {why}") == 1
    with pytest.raises(RunFailed, match=f"stagger cancel {run.path} --rank 1-3; then change what they request"):
        ended.raise_if_failed()


REFUSED = "printf 'scancel: error: Invalid job id 1\\nscancel: error: Access/permission denied\\n' >&2; exit 1"


@pytest.mark.parametrize("ranks", [(), ("--rank", "1")])
def test_a_cancel_that_slurm_refuses_is_not_recorded(run: Run, ranks: tuple[str, ...]) -> None:
    run.launch()
    run.lists(*RUNNING)
    before = launches(run.path)
    run.stand_in("scancel", REFUSED)
    refused = run.cli("cancel", run.path, *ranks, check=1)
    assert "Access/permission denied" in refused.err
    assert launches(run.path) == before
    run.stand_in("scancel", "true")
    run.cli("cancel", run.path, *ranks, check=0)
    assert launches(run.path) != before


def test_jobs_beside_a_refused_one_are_cancelled_all_the_same(run: Run) -> None:
    run.launch()
    first = launches(run.path)[0]["arrays"][0]
    run.cli("launch", run.file, check=0)  # Slurm has lost the first launch, so it seems.
    second = launches(run.path)[1]["arrays"][0]
    rows = [f"{one['job_id']}|0|RUNNING|9:59|{now()}|None|{one['name']}|(null)" for one in (first, second)]
    run.queue.write_text("\n".join(rows) + "\n")
    run.stand_in("scancel", f"[[ $* != *{first['job_id']}* ]] || {{ {REFUSED}; }}")
    refused = run.cli("cancel", run.path, check=1)
    assert refused.err == (
        "stagger: scancel failed: Access/permission denied. Jobs of launch 1 of run go on."
        f" But cancelled Slurm job {second['job_id']}.\n"
    )
    assert ["cancelled" in record for record in launches(run.path)] == [False, True]


def test_a_cancel_also_stops_what_a_job_of_the_run_submits_meanwhile(run: Run) -> None:
    """An end job, or a server that replaces another one, holds the run's lock while it submits."""
    run.launch()
    run.cli("launch", run.file, check=0)  # Slurm shows the jobs of this one later.
    run.stand_in("scancel", "true")
    first, second = (one["arrays"][0] for one in launches(run.path))
    rows = [f"{one['job_id']}|0|RUNNING|9:59|{now()}|None|{one['name']}|(null)\n" for one in (first, second)]
    run.queue.write_text(rows[0])
    lock = run.path / "lock"
    lock.write_bytes(encode(asdict(replace(Holder.this_process(), job="77"))))
    cancel = run.cli.start("cancel", run.path)
    assert cancel.stderr is not None
    assert "waits for Slurm job 77, which holds the run's lock" in cancel.stderr.readline()
    run.queue.write_text("".join(rows))
    lock.unlink()
    out, _ = cancel.communicate(timeout=60)
    assert out.splitlines()[:2] == [f"cancelled Slurm job {one['job_id']}" for one in (first, second)]


def test_status_shows_what_the_records_say_when_squeue_fails(run: Run) -> None:
    run.launch()
    run.stand_in("squeue", "echo 'slurm_load_jobs error: Access denied' >&2; exit 1")
    document = run.cli("status", run.path, "--json", check=3).json
    (stage,) = document["stages"]
    assert (counts(stage), stage["unknown"], stage["active"]) == ((0, 0, 0, 4), 4, True)
    assert document["notes"] == [
        "squeue failed: slurm_load_jobs error: Access denied. What is shown is what the run directory says; jobs may be"
        " active."
    ]
    assert "4 pending (4 unknown)" in run.cli("status", run.path, check=3).out
    refused = run.cli("retry", run.path, check=2)  # Nobody knows whether the ranks run.
    assert "Access denied" in refused.err
    assert len(launches(run.path)) == 1


def test_status_does_without_an_accounting_that_does_not_answer(run: Run) -> None:
    run.launch()
    run.stand_in("sacct", "exec sleep 100")
    document = run.cli("status", run.path, "--json", check=1).json
    assert document["stages"][0]["reasons"] == {"lost": 4}
    assert "did not answer sacct within 6 s" in document["notes"][0]


def test_jobs_that_slurm_has_forgotten_are_said_to_be_forgotten(run: Run) -> None:
    run.launch()
    run.stand_in("sacct", f"echo '{run.job}_1|NODE_FAIL|0:0|n1'")
    document = run.cli("status", run.path, "--json", check=1).json
    assert document["stages"][0]["reasons"] == {"lost": 3, "NODE_FAIL": 1}
    assert "the jobs of 3 ranks of launch 1" in document["notes"][0]


def test_accounting_is_asked_from_the_launch_on(run: Run) -> None:
    run.launch()
    run.cli("status", run.path, check=1)
    (asked,) = run.called("sacct")
    assert f"--jobs={run.job}" in asked
    (since,) = (word.removeprefix("--starttime=") for word in asked.split() if word.startswith("--starttime="))
    age = datetime.now() - datetime.fromisoformat(since)
    assert 3600 <= age.total_seconds() < 2 * 3600


def test_where_no_rank_failed_a_status_asks_accounting_for_the_end_job_alone(run: Run) -> None:
    """An array may have 100,000 elements."""
    run.launch()
    for rank in range(4):
        Storage().write(str(run.path / "completions" / f"{rank:05d}.json"), encode(completion(rank)))
    end = launches(run.path)[0]["finalize"]["job_id"]
    run.stand_in("sacct", f"echo '{end}|CANCELLED by 0|0:0|n1'")
    run.lists()
    document = run.cli("status", run.path, "--json").json
    assert document["stages"][0]["end"]["message"].startswith(f"end job {end} was cancelled")
    (asked,) = run.called("sacct")
    assert f"--jobs={end}" in asked.split()


def test_a_run_whose_jobs_have_all_ended_needs_no_slurm(run: Run) -> None:
    """Rank 1 has failed, the others are done, and the end job has merged the statistics."""
    file = run.file
    content = json.loads(file.read_text())
    content["executor"] = {"type": "local", "workers": 2}
    content["pipeline"].insert(1, {"my_steps:fail_on": {"ranks": [1]}})
    del content["retries"]
    file.write_text(json.dumps(content))
    run.cli("launch", file, check=1)
    path = run.path / "launches" / "1" / "launch.json"
    settings = json.loads(path.read_text())["settings"]
    slurm = {"ranks_per_job": 1, "resources": {}, "log_dir": "", "finalize": {"job_id": "8", "name": "end"}}
    array = {"job_id": "7", "name": "a", "jobs": 4, "ranks": "0-3"}
    shared = {"launch": 1, "time": 0.0, "ranks": "0-3", "start_policy": "uniform", "window_s": 0, "settings": settings}
    path.write_text(json.dumps({"executor": "slurm", **shared, **slurm, "arrays": [array]}))
    write_end(StageFolder(Storage(), str(run.path)), 1, EndRecord("end job 8 on n1", started=1.0, ended=2.0))
    stage = status(run.cli, run.path)
    assert counts(stage) == (3, 1, 0, 0)
    assert not run.called("squeue")
    (run.path / "failures" / "00001.1.json").unlink()  # Now nobody knows whether rank 1 has ended.
    status(run.cli, run.path)
    assert len(run.called("squeue")) == 1


def test_jobs_that_slurm_hides_from_another_member_of_the_group_are_not_called_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PrivateData=jobs nobody but alice sees whether her ranks run. Rank 0 is done."""
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "00000.json").touch()
    stage: Any = SimpleNamespace(folder=StageFolder(Storage(), str(tmp_path)))
    asked = []

    def known_jobs(users: list[str], *_: Any) -> list[QueuedJob]:
        asked.append(users)
        return []

    monkeypatch.setattr(cluster, "known_jobs", known_jobs)
    monkeypatch.setattr(cluster, "has_queue", lambda: True)
    for visible, unknown in ((False, {1, 2, 3}), (True, set())):
        monkeypatch.setattr(cluster, "sees_all_users", lambda visible=visible: visible)
        records = [launch_record(1, "0-3", user="alice")]
        jobs = SlurmJobs(records, brief=True)
        assert jobs.activity(stage, records).unknown == unknown
        assert ("Slurm hides the jobs of alice" in " ".join(jobs.notes)) is not visible
    assert all("alice" in users for users in asked)
    write_end(stage.folder, 1, EndRecord("end job 8 on n1", started=1.0, ended=2.0))  # No rank is active any more.
    monkeypatch.setattr(cluster, "sees_all_users", lambda: False)
    assert not SlurmJobs(records, brief=True).activity(stage, records).ranks
