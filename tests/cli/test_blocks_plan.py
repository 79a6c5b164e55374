"""`stagger blocks plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage
from tests.conftest import Cli
from tests.kit.claimants import record

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "vocab_size": 32000,
    "dtype": "float16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def pipeline(folder: Path, model: Path, **executor: Any) -> Path:
    content = {
        "name": "swarm",
        "run_dir": str(folder / "run"),
        "blocks": {"model": str(model), "servers": 6},
        "executor": {"type": "slurm", "partition": "gpu", **executor},
    }
    path = folder / "swarm.yaml"
    path.write_text(json.dumps(content))
    return path


def test_a_plan_for_given_gpus(cli: Cli, model: Path) -> None:
    shown = cli("blocks", "plan", model, "--gpus", "A100:40GB x 8, T4 x 8", check=0).out
    assert "80 blocks of 1.9 GB" in shown
    assert "Best: engine stream." in shown
    assert "use dtype: float16 there" in shown


def test_the_gpus_and_the_memory_of_a_file(cli: Cli, tmp_path: Path, model: Path) -> None:
    file = pipeline(tmp_path, model, sbatch={"gres": "gpu:a100:2"}, mem_per_cpu_gb=8)
    found = cli("blocks", "plan", file, "--json", check=0).json
    (gpus,) = found["gpus"]
    assert (gpus["name"], gpus["memory_gb"], gpus["count"]) == ("A100", 80, 12)
    assert found["best"] == "swarm"
    assert [engine["engine"] for engine in found["engines"]] == ["whole", "stream", "swarm"]
    assert {block for server in found["servers"] for block in range(server["start"], server["end"])} == set(range(80))
    assert not (tmp_path / "run").exists()


def test_measured_speeds_go_before_the_table(cli: Cli, model: Path) -> None:
    ran = cli("blocks", "plan", model, "--gpus", "new1:80GB x 4", "--tokens-per-s", "80000", "--json", check=0)
    assert ran.json["gpus"][0]["tokens_per_s_of_a_block"] == 80_000
    assert ran.json["gpus"][0]["measured"]


def test_exit_status_1_where_nothing_fits(cli: Cli, model: Path) -> None:
    assert (
        "None of the three fits"
        in cli("blocks", "plan", model, "--gpus", "tiny:2GB", "--tokens-per-s", "9", check=1).out
    )


def test_mistakes_are_one_line_and_status_2(cli: Cli, tmp_path: Path, model: Path) -> None:
    file = pipeline(tmp_path, model)
    for arguments, said in (
        ([file], "does not name the kind of its GPUs"),
        ([tmp_path / "none.yaml"], "There is no file"),
        ([tmp_path / "me/model"], "hf download me/model"),
        ([tmp_path, "--gpus=L4"], "there is no config.json"),
        ([model, "--gpus=new1:80GB"], "the speed of new1 is not known"),
        ([model, "--gpus=L4", "--tokens-per-s=x"], "no number of tokens per second"),
        ([model, "--gpus=L4", "--set", "tasks=3"], "--set and --profile need a pipeline file"),
    ):
        ran = cli("blocks", "plan", *arguments, check=2)
        assert said in ran.err
        assert len(ran.err.strip().splitlines()) == 1


def test_the_speeds_that_the_runs_servers_measured(cli: Cli, tmp_path: Path, model: Path) -> None:
    file = pipeline(tmp_path, model, sbatch={"gres": "gpu:a100:1"})
    registry = Registry(Storage(), str(tmp_path / "run" / "registry"), 80, "00000.1")
    about = {"device": "NVIDIA A100-SXM4-40GB"}
    registry.announce(record("00000.1", 0, 10, throughput=900.0, pass_throughput=500.0, about=about))
    (gpus,) = cli("blocks", "plan", file, "--json", check=0).json["gpus"]
    assert (gpus["tokens_per_s_of_a_block"], gpus["measured"]) == (5000, True)


def test_a_file_with_a_step_that_runs_a_model(cli: Cli, tmp_path: Path, model: Path) -> None:
    """The ready pipeline, with at most 50 jobs at once."""
    places = {"INPUT": str(tmp_path / "in"), "OUTPUT": str(tmp_path / "out"), "MODEL": str(model)}
    ran = cli("blocks", "plan", "score_corpus", "--gpus", "L4 x 50", "--json", check=0, **places)
    assert ran.json["model"]["path"] == str(model)
    set_gres = ("--set", "executor.sbatch.gres=gpu:l4:1")
    (gpus,) = cli("blocks", "plan", "score_corpus", *set_gres, "--json", check=0, **places).json["gpus"]
    assert (gpus["name"], gpus["count"]) == ("L4", 50)
