"""Nodes on which ranks fail for reasons of the node: retries avoid them."""

from __future__ import annotations

from tests.conftest import until
from tests.kit.runs import counts, launches, status
from tests.slurm.conftest import Life, finalize_log

#: The environment of jobs on a cluster whose first node is broken for ranks, and for nothing else.
BROKEN = {"setup": ["[[ -z $${SLURM_ARRAY_JOB_ID:-} || $SLURMD_NODENAME != n1 ]]"]}


def script(life: Life, launch: int) -> str:
    name = launches(life.run)[launch - 1]["arrays"][0]["name"]
    return (life.run / "launches" / str(launch) / f"{name}.sh").read_text()


def test_an_automatic_retry_avoids_a_node_whose_environment_is_broken(life: Life) -> None:
    life.launch(executor={"env": BROKEN}, retries={"max": 1})
    life.finish()
    assert [one.get("avoided") for one in launches(life.run)] == [None, ["n1"]]
    assert "#SBATCH --exclude=n1\n" in script(life, 2)
    assert "the jobs avoid node n1, on which ranks 0-3 failed" in finalize_log(life)
    assert "executor.avoid_nodes: false" in finalize_log(life)
    assert "the jobs avoid node n1, on which several ranks failed" in life.cli("status", life.run, check=0).out


def test_a_retry_by_hand_avoids_it_unless_told_otherwise(life: Life) -> None:
    life.launch(executor={"env": BROKEN})
    until(lambda: counts(status(life.cli, life.run)) == (0, 4, 0, 0), "all ranks to fail")
    allowed = life.cli("retry", life.run, "--wait", "--set", "executor.avoid_nodes=false", check=1)
    assert "avoid node" not in allowed.err
    avoided = life.cli("retry", life.run, "--wait", "--set", "executor.avoid_nodes=true", check=0)
    assert "the jobs avoid node n1, on which ranks 0-3 failed" in avoided.err
    life.compare()
