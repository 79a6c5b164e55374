"""The profile that `stagger doctor --write-profile` makes from what Slurm says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stagger.doctor.check import Check
from stagger.doctor.new_profile import profile_text
from stagger.slurm.site import Site, parse_site_partitions
from stagger.spec.executors import SlurmSpec
from stagger.spec.profiles import ConfigFile

#: Answers of `scontrol --all --oneliner show partition`, shortened.
PARTITIONS = """
PartitionName=cpu Default=YES DefaultTime=01:00:00 MaxTime=1-00:00:00 State=UP TotalCPUs=512 TotalNodes=4
PartitionName=whole DefaultTime=NONE MaxTime=UNLIMITED OverSubscribe=EXCLUSIVE State=UP TotalCPUs=256 TotalNodes=2
PartitionName=old DefaultTime=NONE MaxTime=UNLIMITED OverSubscribe=NO State=DOWN TotalCPUs=8 TotalNodes=1
"""

SITE = Site("alps", parse_site_partitions(PARTITIONS, linear=False), ("physics", "maths"), ("normal", "long"))


def made(spec: SlurmSpec, site: Site = SITE, found: tuple[Check, ...] = ()) -> tuple[str, dict[str, Any]]:
    text = profile_text("alps", site, spec, found)
    content = yaml.safe_load(text)
    ConfigFile.model_validate(
        {"profiles": {"alps": {"executor": {"type": "slurm", **content["profiles"]["alps"]["executor"]}}}}
    )
    return text, content["profiles"]["alps"]["executor"]


def test_it_names_the_default_partition_and_account_and_tells_of_the_others() -> None:
    text, executor = made(SlurmSpec(type="slurm"))
    assert executor == {"partition": "cpu", "account": "physics"}
    assert "# accounts of yours: physics, maths" in text
    assert "# qos: normal  # yours: normal, long" in text
    assert "# partition cpu: 4 nodes of 128 processors; time limit 1-00:00:00, 01:00:00 by default" in text
    assert "# partition whole: 2 nodes of 128 processors, given whole; no time limit" in text
    assert "old" not in text
    assert "ranks_per_job" not in text


def test_it_keeps_what_was_asked_for() -> None:
    spec = SlurmSpec.model_validate(
        {"type": "slurm", "partition": "whole", "account": "maths", "time": 30, "env": {"modules": ["gcc"]}}
    )
    text, executor = made(spec)
    assert executor == {"partition": "whole", "account": "maths", "time": "30", "env": {"modules": ["gcc"]}}
    assert "Jobs get whole nodes of 128 processors: put many ranks into each (ranks_per_job)." in text


def test_without_accounting_and_a_default_partition_it_is_still_a_profile() -> None:
    _, executor = made(SlurmSpec(type="slurm"), Site("alps", ()))
    assert executor == {}


@pytest.mark.parametrize("linear", [True, False])
def test_a_cluster_that_allocates_nodes_gives_them_whole(linear: bool) -> None:
    assert [one.whole for one in parse_site_partitions(PARTITIONS, linear)] == [linear, True]
