"""Job scripts equal recorded ones, which show each change of a template in review, line by line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagger.executor.arrays import block_scripts
from stagger.executor.job_script import ScriptContext, array_script, finalize_script
from stagger.spec.blocks import HOST_STEP, BlocksSpec
from stagger.spec.executors import EnvSpec, SlurmSpec
from stagger.spec.models import StageSpec
from stagger.start.delays import Slots
from tests.executor.test_job_script import context as plain_context

RECORDED = Path(__file__).parents[1] / "data" / "scripts"

CREW: dict[str, Any] = {"ranks_per_job": 512, "cpus_per_task": 2, "mem_per_cpu_gb": 1.5, "gpus_per_task": 1}


def context(more: dict[str, Any] | None = None, **spec: Any) -> ScriptContext:
    return replace(plain_context(**spec), settings="/lustre/it's here/settings.json", **(more or {}))


def blocks() -> dict[str, Any]:
    spec = BlocksSpec(model=None, total=24, servers=4, drain=90, host="simulated")
    executor = SlurmSpec(type="slurm")
    stage = StageSpec(name="swarm", tasks=4, pipeline=[{"use": HOST_STEP}], blocks=spec, executor=executor)  # type: ignore[arg-type]
    return block_scripts(stage)


def scripts() -> dict[str, str]:
    ranks = [[0], [1], [2], [3]]
    packed = [list(range(512)), list(range(512, 1024))]
    container = EnvSpec(container="docker://image", container_args=("--nv", "--bind=/data"))
    return {
        "plain": array_script(context(), "stage-0123", ranks, None, 0),
        "packed": array_script(context(time="90"), "stage-0123", [[0, 3], [4, 9], [20]], 2, 60),
        "spread": array_script(context(), "stage-0123", ranks, 3, 60, Slots(60, 7, 3, 1, 42)),
        "venv": array_script(context(env=EnvSpec(venv="/opt/my venv")), "stage-0123", ranks, None, 30),
        "container": array_script(context(env=container), "stage-0123", ranks, None, 30),
        "nodes": array_script(context(nodes_per_task=4), "stage-0123", ranks, None, 30),
        "crew": array_script(context(**CREW, ranks_at_once=128), "stage-0123", packed, None, 30),
        "crews": array_script(context(**CREW, ranks_at_once=64, nodes_per_job=2), "stage-0123", packed, None, 30),
        "whole": array_script(
            context(ranks_per_job=512, ranks_at_once="auto", gpus_per_task=1), "stage-0123", packed, None, 30
        ),
        "blocks": array_script(context(blocks(), time="1:00:00"), "swarm-0123", ranks, None, 30),
        "end": finalize_script(context(partition="cpu", qos="high", account="me"), "stage-end-0123", ["11", "12"]),
    }


@pytest.mark.parametrize(
    "name", ["plain", "packed", "spread", "venv", "container", "nodes", "crew", "crews", "whole", "blocks", "end"]
)
def test_a_script_is_as_it_was_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/opt/python/bin/python")
    monkeypatch.setattr(
        "stagger.executor.job_script.task_arguments", lambda: ["-I", "-S", "-c", "BOOT", "stagger.task"]
    )
    assert scripts()[name] == (RECORDED / f"{name}.sbatch").read_text()
