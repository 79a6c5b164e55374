"""What Slurm answers, as recorded, and what stagger relies on in submitit."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
import submitit
from submitit.core.core import PicklingExecutor

from stagger import slurm
from stagger.errors import StaggerError

CONFIG_22_05 = """\
Configuration data as of 2026-11-21T07:20:11
MaxArraySize            = 10001
MaxJobCount             = 50000
SchedulerParameters     = sched_interval=1,default_queue_depth=10000
"""


def test_limits_are_read() -> None:
    assert slurm.parse_config(CONFIG_22_05) == slurm.Limits(10001)
    assert slurm.parse_config("") == slurm.Limits(1001)


def test_a_queue_is_read() -> None:
    text = "412|0|RUNNING|a-1\n412|17|COMPLETING|a-1\n413|N/A|PENDING|odd|name\n"
    assert slurm.parse_queue(text) == [
        slurm.QueuedJob("412", 0, "RUNNING", "a-1"),
        slurm.QueuedJob("412", 17, "COMPLETING", "a-1"),
        slurm.QueuedJob("413", 0, "PENDING", "odd|name"),
    ]
    assert slurm.parse_queue("") == []


def test_accounting_is_read() -> None:
    text = "412_0|COMPLETED|0:0|n1\n412_1|CANCELLED by 1000|0:15|n2\n412_[2,4-6%3]|PENDING|0:0|None assigned\n"
    states = slurm.parse_accounting(text)
    assert states[("412", 0)] == "COMPLETED"
    assert states[("412", 1)] == "CANCELLED"
    assert sorted(index for (_, index), state in states.items() if state == "PENDING") == [2, 4, 5, 6]


def test_a_surrounding_job_does_not_leak() -> None:
    inside = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SQUEUE_STATES": "R", "SLURM_CONF": "/c", "HOME": "/h"}
    assert slurm.outside_environment(inside) == {"SLURM_CONF": "/c", "HOME": "/h"}


def test_without_slurm_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    limits = slurm.limits()
    assert (limits.max_array_size, "no scontrol on this machine" in limits.assumed) == (1001, True)
    with pytest.raises(StaggerError, match=r"no sbatch on this machine.*--executor local.*--dry-run"):
        slurm.submit(str(tmp_path), "#!/bin/bash\n", "name")
    with pytest.raises(StaggerError, match="no squeue on this machine"):
        slurm.queue(["name"])


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
    assert slurm.submit(str(tmp_path), "#!/bin/bash\necho mine\n", "name") == "77"
    text = seen.read_text()
    assert "SLURM_ARRAY_TASK_ID" not in text
    assert "SLURM_CONF=/etc/slurm.conf" in text
    assert "echo mine" in text
