"""Slurm's commands: retries while Slurm is busy, no job submitted twice, and the private parts of submitit we use."""

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
from stagger.slurm import cluster, command, own_job, sbatch


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def failing(times: int) -> Callable[[], str]:
    """A command that Slurm rejects as busy `times` times."""
    left = [times]

    def call() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise command.SlurmBusy("squeue failed: Socket timed out on send/recv operation")
        return "fine"

    return call


def test_who_is_turned_away_asks_again_but_not_for_ever() -> None:
    clock = Clock()
    assert command.patiently(failing(4), 60, clock=clock, sleep=clock.sleep) == "fine"
    assert 0 < clock.now < 60
    with pytest.raises(command.SlurmBusy, match="Socket timed out"):
        command.patiently(failing(10**6), 60, clock=clock, sleep=clock.sleep)
    with pytest.raises(StaggerError, match="no"):
        command.patiently(lambda: (_ for _ in ()).throw(StaggerError("no")), 60, clock=clock, sleep=clock.sleep)


def stand_in(folder: Path, name: str, script: str) -> None:
    """Write a stand-in for one of Slurm's programs into `folder`, which is first in the PATH."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder, "srun", "true")  # submitit checks that it exists.
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return folder


BUSY = "echo 'sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job' >&2; exit 1"


def test_a_busy_slurm_is_asked_again(stand_ins: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f'echo x >> {count}; [[ $(wc -l < {count}) -lt 3 ]] && {{ {BUSY}; }}; echo "12;east"')
    stand_in(stand_ins, "squeue", "true")
    assert sbatch.submit(str(tmp_path), "#!/bin/bash\n", "name") == ("12", "east")
    assert count.read_text().count("x") == 3


def test_a_job_that_was_accepted_without_a_word_is_not_submitted_again(stand_ins: Path, tmp_path: Path) -> None:
    """The job has already ended when stagger looks for it."""
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f"echo x >> {count}; exit 124")  # `timeout` exits so when a command hangs.
    stand_in(stand_ins, "squeue", "echo '77|0|COMPLETED|0:01|N/A|None|name|/s/.name.sh'")
    assert sbatch.submit(str(tmp_path), "#!/bin/bash\n", "name") == ("77", "")
    assert count.read_text().count("x") == 1


def test_a_job_that_was_accepted_without_a_word_is_found_though_it_is_hidden_and_renamed(
    stand_ins: Path, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f'echo "${{@: -1}}" >> {count}; exit 124')
    answer = f"echo '77|0|RUNNING|0:01|N/A|None|site-job|'$(tail -n 1 {count})"
    stand_in(stand_ins, "squeue", f"for word; do [[ $word != --all ]] || {answer}; done")
    assert sbatch.submit(str(tmp_path), "#!/bin/bash\n", "name-0a1b") == ("77", "")
    assert len(count.read_text().splitlines()) == 1
    assert not list(tmp_path.glob(".*.sh"))  # No copy of the script is left behind.


@pytest.mark.parametrize(
    ("script", "variables", "clusters"),
    [
        ("#SBATCH --clusters=east", {"SLURM_CLUSTERS": "north"}, "east"),
        ("#SBATCH -M east", {}, "east"),
        ("#!/bin/bash", {"SLURM_CLUSTERS": "north"}, "north"),
        ("#!/bin/bash", {"SLURM_CLUSTERS": "north", "SBATCH_CLUSTERS": "west"}, "west"),
    ],
)
def test_the_clusters_that_a_file_or_a_site_wants_count(
    stand_ins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    variables: dict[str, str],
    clusters: str,
) -> None:
    seen = tmp_path / "seen"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stand_in(stand_ins, "sbatch", f'echo "$@" >> {seen}; echo "Submitted batch job 12 on cluster {clusters}"')
    assert sbatch.submit(str(tmp_path), f"{script}\n", "name") == ("12", clusters)
    assert f"--clusters={clusters} " in seen.read_text()


def test_of_several_clusters_the_look_up_asks_each(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "east,west")
    stand_in(stand_ins, "sbatch", "exit 124")
    lines = "CLUSTER: east\\nARRAY_JOB_ID|...\\nCLUSTER: west\\n77|N/A|PENDING|0:00|N/A|None|name|(null)\\n"
    stand_in(stand_ins, "squeue", f'echo "$*" > {tmp_path}/asked; printf "{lines}"')
    assert sbatch.submit(str(tmp_path), "#!/bin/bash\n", "name") == ("77", "west")
    assert "--clusters=east,west --all" in (tmp_path / "asked").read_text()


def test_a_cluster_that_does_not_exist_is_said(stand_ins: Path, tmp_path: Path) -> None:
    stand_in(stand_ins, "sbatch", "echo \"sbatch: error: No cluster 'nosuch' known by database.\" >&2; exit 1")
    with pytest.raises(StaggerError, match=r"No cluster 'nosuch'.*change executor.sbatch.clusters, or SLURM_CLUSTERS"):
        sbatch.submit(str(tmp_path), "#!/bin/bash\n#SBATCH --clusters=nosuch\n", "name")


def test_commands_ask_the_cluster_that_has_the_jobs(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not by its name from inside one of its own jobs: a compute node may not reach slurmdbd."""
    seen = tmp_path / "seen"
    for name in ("squeue", "sacct", "scancel"):
        stand_in(stand_ins, name, f'echo "{{}} $*" >> {seen}'.format(name))
    for inside in ("", "east"):
        monkeypatch.setenv("SLURM_CLUSTER_NAME", inside)
        cluster.known_jobs(["me"], "east")
        cluster.final_states(["7"], time.time(), "east")
        cluster.cancel(["7"], "east")
    asked = [(line.split()[0], "--clusters=east" in line) for line in seen.read_text().splitlines()]
    programs = ("squeue", "sacct", "scancel")
    assert asked == [(name, True) for name in programs] + [(name, False) for name in programs]


def test_a_job_requeues_itself_on_its_own_cluster(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "east,west")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    stand_in(stand_ins, "squeue", f"env > {tmp_path}/env; echo 'RUNNING|1:00'")
    assert own_job.job_state("7_1") == ("RUNNING", 60)
    seen = (tmp_path / "env").read_text()
    assert "_CLUSTERS=" not in seen
    assert "SQUEUE_" not in seen


def test_while_nobody_knows_whether_there_is_a_job_none_is_submitted(stand_ins: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    stand_in(stand_ins, "sbatch", f"echo x >> {count}; {BUSY}")
    stand_in(stand_ins, "squeue", "echo 'slurm_load_jobs error: access denied' >&2; exit 1")
    with pytest.raises(StaggerError, match="squeue failed: slurm_load_jobs error"):
        sbatch.submit(str(tmp_path), "#!/bin/bash\n", "name")
    assert count.read_text().count("x") == 1


def test_a_surrounding_job_does_not_leak() -> None:
    inside = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SQUEUE_STATES": "R", "SLURM_CONF": "/c", "HOME": "/h"}
    assert command.outside_environment(inside) == {"SLURM_CONF": "/c", "HOME": "/h"}


def test_without_slurm_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    limits = cluster.limits()
    assert (limits.max_array_size, "no scontrol on this machine" in limits.assumed) == (1001, True)
    with pytest.raises(StaggerError, match=r"no sbatch on this machine.*--executor local.*--dry-run"):
        sbatch.submit(str(tmp_path), "#!/bin/bash\n", "name")
    with pytest.raises(StaggerError, match="no squeue on this machine"):
        cluster.queue("name")


def test_submitit_is_as_it_is_used() -> None:
    """`stagger.slurm` relies on these private parts of submitit. If this fails after an upgrade, look there."""
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
    """The stand-in for sbatch records its environment and its script."""
    seen = tmp_path / "seen"
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(f'#!/bin/bash\nenv > {seen}\ncat "$1" >> {seen}\necho Submitted batch job 77\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert sbatch.submit(str(tmp_path), "#!/bin/bash\necho mine\n", "name") == ("77", "")
    text = seen.read_text()
    assert "SLURM_ARRAY_TASK_ID" not in text
    assert "SLURM_CONF=/etc/slurm.conf" in text
    assert "echo mine" in text


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
