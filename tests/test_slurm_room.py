"""What Slurm answers, as recorded, and what stagger relies on in submitit."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit
from submitit.core.core import PicklingExecutor

from stagger.errors import StaggerError
from stagger.slurm import answers, cluster, runner, submission
from stagger.slurm.answers import Limits, QueuedJob

RECORDED = Path(__file__).parent / "data" / "slurm"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def versions(name: str) -> list[str]:
    """The versions of Slurm of which there is such an output."""
    return sorted(path.parent.name for path in RECORDED.glob(f"*/{name}"))


LIMITS = {
    "20.11": Limits(version="20.11.6"),  # An excerpt without them: Slurm's defaults.
    "21.08": Limits(500, 10_000, def_mem_per_cpu=4000, version="21.08.5", accounting=True, enforced=True),
    "22.05": Limits(10_001, 50_000, def_mem_per_cpu=100, version="22.05.8", accounting=True),
    "23.02": Limits(1001, 10_000, version="23.02.7", accounting=True),
    "24.05": Limits(40_001, 200_000, version="24.05.2", enforced=True),
    "24.11": Limits(10_001, 50_000, def_mem_per_cpu=100, version="24.11.5", accounting=True),
    "25.05": Limits(11_000, 65_000, version="25.05.5", accounting=True),
    "25.11": Limits(1001, 10_000, version="25.11.4", accounting=True),
}


@pytest.mark.parametrize("version", versions("config.txt"))
def test_limits_are_read_from_any_version(version: str) -> None:
    assert answers.parse_config(recorded(f"{version}/config.txt")) == LIMITS[version]


def test_limits_are_the_defaults_where_slurm_does_not_say() -> None:
    assert answers.parse_config("") == Limits(1001, 10_000)


STATES = {
    "20.11": {("700", 0): "COMPLETED", ("700", 1): "OUT_OF_MEMORY", ("700", 4): "PENDING"},
    "21.08": {("700", 0): "COMPLETED", ("700", 1): "TIMEOUT"},  # After it had been preempted.
    "22.05": {("75767", 0): "CANCELLED", ("75766", 1): "FAILED", ("75766", 2): "CANCELLED", ("75766", 3): "FAILED"},
    "23.11": {("2699001", 0): "CANCELLED", ("2699102", 0): "OUT_OF_MEMORY", ("2699103", 0): "NODE_FAIL"},
    "24.11": {("344", 0): "CANCELLED", ("343", 1): "FAILED", ("343", 2): "CANCELLED", ("343", 4): "COMPLETED"},
}


@pytest.mark.parametrize("version", versions("sacct.txt"))
def test_accounting_is_read_from_any_version(version: str) -> None:
    head, *lines = recorded(f"{version}/sacct.txt").splitlines()
    columns = head.split("|")
    if "State" not in columns:
        columns, lines = ["JobID", "State"], [head, *lines]
    rows = [line.split("|") for line in lines]
    text = "\n".join(f"{row[columns.index('JobID')]}|{row[columns.index('State')]}" for row in rows)
    found = answers.parse_accounting(text)
    assert {job: found[job] for job in STATES[version]} == STATES[version]
    assert set(found.values()) <= answers.ENDED | answers.QUEUED | {"RUNNING", "COMPLETING", "REQUEUED"}


def test_a_cut_state_is_known_all_the_same() -> None:
    assert answers.parse_accounting("9_1|OUT_OF_ME+|0:125|n1") == {("9", 1): "OUT_OF_MEMORY"}


@pytest.mark.parametrize("version", versions("squeue.txt"))
def test_a_queue_is_read_from_any_version(version: str) -> None:
    rows = [line.split("|", 6) for line in recorded(f"{version}/squeue.txt").splitlines()]
    jobs = answers.parse_queue("\n".join("|".join([*row[:4], *row[5:]]) for row in rows))
    assert len(jobs) == len(rows)
    for job, row in zip(jobs, rows, strict=True):
        index = int(row[1]) if row[1].isdigit() else 0
        assert (job.job_id, job.index, job.state, job.reason, job.name) == (row[0], index, row[2], row[5], row[6])
        assert job.seconds is not None
    assert any(job.state not in answers.ENDED for job in jobs)


def test_a_queue_without_an_answer_is_empty_and_a_time_may_be_unknown() -> None:
    assert answers.parse_queue("") == []
    assert answers.parse_queue("1|3|PENDING|INVALID|Priority|a|b\n") == [
        QueuedJob("1", 3, "PENDING", "a|b", None, "Priority")
    ]


def test_a_hundred_thousand_jobs_are_read() -> None:
    text = "".join(f"9001|{index}|RUNNING|1:02:03|None|keep-0a1b\n" for index in range(100_000))
    assert len(answers.parse_queue(text)) == 100_000
    text = "".join(f"9001_{index}|COMPLETED|0:0|n1\n" for index in range(100_000))
    assert len(answers.parse_accounting(text)) == 100_000


@pytest.mark.parametrize(
    ("printed", "job"),
    [
        ("Submitted batch job 12\n", "12"),
        ("Submitted batch job 12 on cluster east\n", "12"),
        ("12\n", "12"),
        ("12;east\n", "12"),
        ("sbatch: a word of the cluster's\nSubmitted batch job 12\n", "12"),
        ("sbatch: lua: rejected\n", None),
    ],
)
def test_a_job_id_is_read_from_whatever_sbatch_prints(printed: str, job: str | None) -> None:
    assert answers.parse_submitted(printed) == job


@pytest.mark.parametrize(
    "text", ["", "UNLIMITED", "INVALID", "Partition_Limit", "1:2:3:4", "-1", "1-", "a-1", "NOT_SET"]
)
def test_what_is_no_time_is_none(text: str) -> None:
    assert answers.parse_time(text) is None


@pytest.mark.parametrize("text", ["", "much", "4GG", "-1"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        answers.parse_memory(text)


def refusals() -> list[tuple[str, str]]:
    """(what sbatch said, the key that the answer to the user has to name)."""
    found = []
    for path in sorted(RECORDED.glob("*/refusals.txt")):
        for part in path.read_text().split("# ")[1:]:
            key, _, words = part.partition("\n")
            found.append((words, key))
    return found


@pytest.mark.parametrize(("words", "key"), refusals())
def test_a_refusal_names_the_key_to_change(words: str, key: str) -> None:
    sentence = submission.refusal(submission.said(words))
    assert words.strip().splitlines()[0].removeprefix("sbatch: ").removeprefix("error: ").rstrip(".") in sentence
    for word in key.split(" in "):
        assert word in sentence.partition("change ")[2]
    assert "\n" not in sentence


@pytest.mark.parametrize("words", recorded("any/passing.txt").splitlines())
def test_what_passes_is_known(words: str) -> None:
    assert runner.BUSY.search(words)
    assert not any(runner.BUSY.search(refused) for refused, _ in refusals())


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*/sbatch*.txt")), ids=str)
def test_the_job_id_of_any_version(path: Path) -> None:
    assert (answers.parse_submitted(path.read_text()) or "").isdecimal()


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def failing(times: int) -> Callable[[], str]:
    """A command that is turned away so many times."""
    left = [times]

    def call() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise runner.SlurmBusy("squeue failed: Socket timed out on send/recv operation")
        return "fine"

    return call


def test_who_is_turned_away_asks_again_but_not_for_ever() -> None:
    clock = Clock()
    assert runner.patiently(failing(4), 60, clock=clock, sleep=clock.sleep) == "fine"
    assert 0 < clock.now < 60
    with pytest.raises(runner.SlurmBusy, match="Socket timed out"):
        runner.patiently(failing(10**6), 60, clock=clock, sleep=clock.sleep)
    with pytest.raises(StaggerError, match="no"):
        runner.patiently(lambda: (_ for _ in ()).throw(StaggerError("no")), 60, clock=clock, sleep=clock.sleep)


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program in place of Slurm's, first in the PATH."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder, "srun", "true")  # submitit looks for it.
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return folder


BUSY = "echo 'sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job' >&2; exit 1"


def test_a_busy_slurm_is_asked_again(stand_ins: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f'echo x >> {count}; [[ $(wc -l < {count}) -lt 3 ]] && {{ {BUSY}; }}; echo "12;east"')
    stand_in(stand_ins, "squeue", "true")
    assert submission.submit(str(tmp_path), "#!/bin/bash\n", "name") == "12"
    assert count.read_text().count("x") == 3


def test_a_job_that_was_accepted_without_a_word_is_not_submitted_again(stand_ins: Path, tmp_path: Path) -> None:
    """It has even ended by the time that it is looked for."""
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f"echo x >> {count}; exit 124")  # As `timeout` ends a command that hangs.
    stand_in(stand_ins, "squeue", "echo '77|0|COMPLETED|0:01|None|name'")
    assert submission.submit(str(tmp_path), "#!/bin/bash\n", "name") == "77"
    assert count.read_text().count("x") == 1


def test_while_nobody_knows_whether_there_is_a_job_none_is_submitted(stand_ins: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f"echo x >> {count}; {BUSY}")
    stand_in(stand_ins, "squeue", "echo 'slurm_load_jobs error: access denied' >&2; exit 1")
    with pytest.raises(StaggerError, match="squeue failed: slurm_load_jobs error"):
        submission.submit(str(tmp_path), "#!/bin/bash\n", "name")
    assert count.read_text().count("x") == 1


def test_a_surrounding_job_does_not_leak() -> None:
    inside = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SQUEUE_STATES": "R", "SLURM_CONF": "/c", "HOME": "/h"}
    assert runner.outside_environment(inside) == {"SLURM_CONF": "/c", "HOME": "/h"}


def test_without_slurm_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    limits = cluster.limits()
    assert (limits.max_array_size, "no scontrol on this machine" in limits.assumed) == (1001, True)
    with pytest.raises(StaggerError, match=r"no sbatch on this machine.*--executor local.*--dry-run"):
        submission.submit(str(tmp_path), "#!/bin/bash\n", "name")
    with pytest.raises(StaggerError, match="no squeue on this machine"):
        cluster.queue(["name"])


def test_submitit_is_as_it_is_used() -> None:
    """The private parts of submitit that `stagger.slurm` builds on. If this fails after an upgrade, look there."""
    base = submitit.SlurmExecutor
    assert list(inspect.signature(base.__init__).parameters)[:2] == ["self", "folder"]
    assert list(inspect.signature(base._make_submission_file_text).parameters) == ["self", "command", "uid"]
    assert list(inspect.signature(base._make_submission_command).parameters) == ["self", "submission_file_path"]
    assert isinstance(inspect.getattr_static(base, "_submitit_command_str"), property)
    source = inspect.getsource(PicklingExecutor._submit_command)
    for used in ("_make_submission_file_text", "_make_submission_command", "_get_job_id_from_submission_command"):
        assert used in source
    assert base._get_job_id_from_submission_command("Submitted batch job 5 on cluster x") == "5"


def test_submission_hides_the_surrounding_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for sbatch that says what it was given."""
    seen = tmp_path / "seen"
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(f'#!/bin/bash\nenv > {seen}\ncat "$1" >> {seen}\necho Submitted batch job 77\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert submission.submit(str(tmp_path), "#!/bin/bash\necho mine\n", "name") == "77"
    text = seen.read_text()
    assert "SLURM_ARRAY_TASK_ID" not in text
    assert "SLURM_CONF=/etc/slurm.conf" in text
    assert "echo mine" in text


def test_limits_of_users_count_where_they_are_enforced() -> None:
    for value, enforced in (
        ("associations,limits,qos", True),
        ("safe", True),
        ("associations", False),
        ("none", False),
    ):
        assert answers.parse_config(f"AccountingStorageEnforce = {value}").enforced is enforced


def test_what_has_ended_is_no_error_to_cancel(stand_ins: Path) -> None:
    stand_in(
        stand_ins,
        "scancel",
        "echo 'scancel: error: Kill job error on job id 7_3: Invalid job id specified' >&2; exit 1",
    )
    cluster.cancel(["7_3", "8"])
    stand_in(stand_ins, "scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    with pytest.raises(StaggerError, match="permission denied"):
        cluster.cancel(["8"])
