"""Memory and time of a retry."""

from __future__ import annotations

from typing import Any

from stagger.executor.more_resources import Defaults, scaled
from stagger.rundir.launch_records import Group
from stagger.spec.executors import SlurmSpec


def slurm(**settings: Any) -> SlurmSpec:
    return SlurmSpec(type="slurm", **settings)


def test_more_memory_and_time_however_they_were_asked_for() -> None:
    more = Group([1], 1, memory_scale=2.0, time_scale=1.5)
    assert scaled(slurm(), Group([1]), Defaults()) == slurm()
    assert scaled(slurm(), more, Defaults(512, 600)).mem_per_cpu_gb == 1.0
    assert scaled(slurm(), more, Defaults(512, 600)).time == "0-00:15:00"
    again = scaled(slurm(sbatch={"mem": "4G", "time": "1:00:00"}), more, Defaults())
    assert again.sbatch == {"mem": "8192M", "time": "0-01:30:00"}
    many = scaled(slurm(mem_per_cpu_gb=2, ranks_per_job=512, ranks_at_once=128), more, Defaults())
    assert (many.ranks_at_once, many.mem_per_cpu_gb) == (64, 4.0)  # The job's memory is the same.
    whole = scaled(slurm(ranks_per_job=512, ranks_at_once=128, sbatch={"mem": "4G"}), more, Defaults())
    assert (whole.ranks_at_once, whole.sbatch) == (64, {"mem": "4096M"})
    alone = scaled(slurm(ranks_per_job=3, ranks_at_once=3, sbatch={"mem": "3G"}), Group([1], 2, 4.0), Defaults())
    assert (alone.ranks_at_once, alone.sbatch) == (1, {"mem": "4096M"})
    auto = scaled(slurm(ranks_per_job=512, ranks_at_once="auto", cpus_per_task=2), more, Defaults())
    assert (auto.cpus_per_task, auto.mem_per_cpu_gb) == (4, None)
    assert scaled(slurm(), more, Defaults()) == slurm()  # The previous memory and time are unknown; the log warns.
