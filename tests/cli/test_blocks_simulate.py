"""`stagger blocks simulate`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stagger.blocks.simulation.traces import SCENARIOS
from stagger.cli.block_simulation import Wanted, experiments
from stagger.errors import StaggerError
from tests.conftest import Cli


def test_command_compares_and_draws(cli: Cli, tmp_path: Path) -> None:
    arguments = ["--scenario=join", "--scenario=wave", "--servers=12", "--hours=0.5", "--seeds=1", "--lease=60"]
    arguments += ["--policy=new only", "--policy=recommended", "--plot=plot.svg"]
    document = cli("blocks", "simulate", *arguments, "--json", check=0).json
    assert [made["scenario"] for made in document["simulations"]] == ["join", "wave"]
    for made in document["simulations"]:
        assert [row["policy"] for row in made["results"]] == ["new only", "recommended"]
        assert {row["lease_s"] for row in made["results"]} == {60}
        assert 0 < made["results"][0]["percent_of_bound"] <= 100
        assert made["conditions"]["visibility_s"] == 5
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    shown = cli("blocks", "simulate", *arguments[:-1], check=0).out
    assert re.search(r"recommended +\d+\.\d % ", shown)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy=planer"], "There is no policy 'planer'; did you mean 'planner'?"),
        (["--servers=0"], "--servers"),
        (["--plot=plot.gif"], "a plot is a .png or .svg file"),
    ],
)
def test_each_mistake_is_one_line_and_status_2(cli: Cli, arguments: list[str], said: str) -> None:
    ran = cli("blocks", "simulate", *arguments, check=2)
    assert said in ran.err
    assert ran.err.startswith("stagger: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_scenarios_are_named_one_by_one_or_all() -> None:
    def names(*scenarios: str, visibility_s: float | None = None, ideal: bool = False) -> list[str]:
        wanted = Wanted(visibility_s, None, None, ideal)
        found = experiments(scenarios, [], wanted, servers=[12, 24, 12], hours=1, seeds=range(2))
        assert [experiment.servers for experiment in found] == [12, 24] * (len(found) // 2)
        return [experiment.scenario for experiment in found[::2]]

    assert names("wave", "join", "wave") == ["wave", "join"]
    assert names("join", "all") == list(SCENARIOS)
    with pytest.raises(StaggerError, match="no scenario 'chrun'; did you mean 'churn'"):
        names("chrun")
    with pytest.raises(StaggerError, match="no scenario 'x'; choose from join, churn, wave, slurm"):
        names("x")
    with pytest.raises(StaggerError, match="--ideal means --visibility 0"):
        names("join", visibility_s=3, ideal=True)


def test_without_numpy_the_command_says_how_to_get_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')")
    ran = cli("blocks", "simulate", check=2, PYTHONPATH=str(tmp_path))
    assert "pip install 'stagger-slurm[blocks]'" in ran.err
    assert ran.err.count("\n") == 1
