"""A model that cannot fit into what servers request is refused by the launch, with what to request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.planning.fit import check_fit
from stagger.errors import StaggerError
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import Storage
from tests.blocks.test_planning import checkpoint

BLOCKS = 8

#: Shapes of a block of 4 GB in float32, and 2 GB in bfloat16. A plan reads headers only.
SHAPE = (1000, 1_000_000)

GPU = {"gpus_per_task": 1, "mem_per_cpu_gb": 8}
T4 = {"mem_per_cpu_gb": 8, "sbatch": {"gres": "gpu:t4:1"}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    tensors = {f"model.layers.{block}.mlp.weight": SHAPE for block in range(BLOCKS)}
    return checkpoint(tmp_path / "model", tensors, num_hidden_layers=BLOCKS)


def stage(model: str, executor: dict[str, Any], **blocks: Any) -> StageSpec:
    hosts = {"model": model, "total": BLOCKS, "servers": 2, "host": "transformer", **blocks}
    step = {"use": "stagger.blocks.step:HostBlocks", "params": {}}
    fields = {"blocks": hosts, "pipeline": [step], "tasks": hosts["servers"], "executor": executor}
    return StageSpec.model_validate({"name": "swarm", **fields})


@pytest.mark.parametrize(
    ("executor", "blocks", "said"),
    [
        ({"mem_per_cpu_gb": 3}, {}, r"a block of .* takes 4\.0 GB, and a server requests 3\.2 GB of memory: raise"),
        ({"mem_per_cpu_gb": 8}, {}, r"2 servers with 8\.6 GB of memory each cannot hold the 8 blocks of .* at least 4"),
        (
            T4,
            {"servers": 1},
            r"1 server with 16\.0 GB of GPU memory \(T4 16 GB\) each .* raise blocks\.servers to at least 2",
        ),
        (T4, {"num_blocks": 5}, "blocks.num_blocks is 5, but no more than 4 blocks of"),
        ({**GPU, "mem_per_cpu_gb": 3}, {}, "a block of .* takes .* raise executor.mem_per_cpu_gb, or cpus_per_task"),
    ],
)
def test_too_little_memory(model: str, executor: dict[str, Any], blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(StaggerError, match=f"swarm: {said}"):
        check_fit(Storage(), stage(model, {"type": "slurm", **executor}, **blocks))


@pytest.mark.parametrize(
    ("executor", "blocks"),
    [
        ({"mem_per_cpu_gb": 8}, {"servers": 4}),
        ({"mem_per_cpu_gb": 4, "cpus_per_task": 4}, {"servers": 2}),
        ({"mem_per_cpu_gb": 8}, {"host_options": {"dtype": "bfloat16"}}),
        (T4, {}),
        (GPU, {}),  # It is unknown what kind of GPU comes.
        ({"mem_per_cpu_gb": 1}, {"host": "simulated"}),
        ({}, {}),
    ],
)
def test_enough_or_unknown_memory(model: str, executor: dict[str, Any], blocks: dict[str, Any]) -> None:
    check_fit(Storage(), stage(model, {"type": "slurm", **executor}, **blocks))


def test_this_machine(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = stage(model, {"type": "local", "workers": 2})
    monkeypatch.setattr("stagger.blocks.planning.fit.GPU_DEVICE", str(tmp_path / "none"))
    monkeypatch.setattr("stagger.blocks.planning.fit.limit_mib", lambda environment, requested: 16 * 1024)
    with pytest.raises(StaggerError, match=r"the blocks of .* take 32\.0 GB, and this machine has 17\.2 GB of memory"):
        check_fit(Storage(), here)
    monkeypatch.setattr("stagger.blocks.planning.fit.GPU_DEVICE", str(tmp_path))
    check_fit(Storage(), here)


def test_a_model_that_cannot_be_measured_is_left_to_its_servers(tmp_path: Path) -> None:
    odd = checkpoint(tmp_path / "odd", {"weights": (10,)}, num_hidden_layers=BLOCKS)
    check_fit(Storage(), stage(odd, {"type": "slurm", "mem_per_cpu_gb": 0.001}))


def test_servers_that_can_never_serve_all_blocks_are_no_swarm(model: str, tmp_path: Path) -> None:
    def run(**blocks: Any) -> RunSpec:
        hosts = stage(model, {"type": "slurm", "mem_per_cpu_gb": 8}, **blocks)
        step = {"use": "read_jsonl", "params": {"path": "in"}}
        user = {"name": "score", "uses": ["swarm"], "pipeline": [step], "executor": {"type": "slurm"}}
        fields = {"name": "both", "run_dir": str(tmp_path), "cwd": "/", "stages": [hosts, user]}
        return RunSpec.model_validate(fields)

    with pytest.raises(ValueError, match=r"2 servers with num_blocks: 3 each never serve all 8 blocks .* servers to 3"):
        run(num_blocks=3)
    run(num_blocks=4)
    run(num_blocks="auto")
