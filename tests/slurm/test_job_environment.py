"""The surroundings of a task: its environment, GPUs, nodes, a container, another job, a Python script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING, SLURM
from tests.slurm.conftest import Life, slurm


def test_environment_is_set_up_before_the_task(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(
        "import os, sys\n"
        "def show(data, rank, world_size):\n"
        "    print(os.environ['GREETING'], sys.prefix, os.environ['VIRTUAL_ENV'], os.getcwd())\n"
        "    yield from data\n"
    )
    env = {"setup": ["export GREETING='it'\"'\"'s set up'"], "venv": sys.prefix}
    file = pipeline_file(
        steps=("show:show",), tasks=1, executor={**SLURM, "env": env, "sbatch": {"comment": "a 'b' $c"}}
    )
    slurm_cli("launch", file, "--wait", check=0)
    log = slurm_cli("logs", tmp_path / "run", "--rank", "0", check=0).out
    assert f"it's set up {sys.prefix} {sys.prefix} {tmp_path}" in log


def test_gpus_are_asked_for(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(
        "import os\n"
        "def show(data, rank, world_size):\n"
        "    print('devices', os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "    yield from data\n"
    )
    executor = {"type": "slurm", "partition": "gpu", "gpus_per_task": 2, "mem_per_cpu_gb": 0.5}
    slurm_cli("launch", pipeline_file(steps=("show:show",), tasks=1, executor=executor), "--wait", check=0)
    assert re.search(r"devices \d,\d", slurm_cli("logs", tmp_path / "run", "--rank", "0", check=0).out)


def test_launching_from_inside_a_job(slurm_cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """Variables of the surrounding job must not leak: sbatch would take options from them."""
    file = pipeline_file(executor=SLURM, randomize_start_duration=0)
    outer = f"cd {tmp_path} && exec {sys.executable} -m stagger launch {file} --wait"
    slurm(slurm_cli, "sbatch", "--array=3", f"--output={tmp_path}/outer", "--mem=50", "--wrap", outer)
    until(lambda: (tmp_path / "outer").exists() and "The result is in" in (tmp_path / "outer").read_text(), "the run")
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_python_objects_run_as_jobs(slurm_cli: Cli, tmp_path: Path, shards: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from stagger import ReadJsonl, SlurmExecutor, WriteJsonl\n"
        "suffix = '!'\n"
        "def shout(data, rank, world_size):\n"
        "    for document in data:\n"
        "        document.text += suffix\n"
        "        yield document\n"
        f"executor = SlurmExecutor([ReadJsonl({str(shards)!r}), shout, lambda data, rank, world_size: data,\n"
        f"    WriteJsonl({str(tmp_path / 'out')!r})], tasks=3, run_dir={str(tmp_path / 'run')!r}, partition='cpu',\n"
        "    randomize_start_duration=0)\n"
        "print(executor.run().status().done)\n"
    )
    done = subprocess.run([sys.executable, script], env=slurm_cli.env, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"
    assert output_ids(tmp_path / "out") == EVERYTHING
    (pickle,) = tmp_path.glob("run/launches/1/pipeline.pkl")
    assert os.stat(pickle).st_mode & 0o077 == 0


def test_a_task_on_several_nodes_commits_once(life: Life) -> None:
    life.launch({"my_steps:note_node": {}}, executor={"nodes_per_task": 2}, tasks=2)
    life.finish()
    notes = sorted(path.name for path in life.folder.glob("flag-*"))
    assert notes == [f"flag-{rank}-{node}-of-2" for rank in (0, 1) for node in (0, 1)]
    logs = sorted(path.name for path in (life.run / "logs" / "00000").iterdir())
    assert logs == ["1.log", "1.node1.log"]


def test_a_container_runs_the_task(life: Life, tmp_path: Path) -> None:
    """A stand-in for apptainer, which is not available here, records its arguments and runs the command."""
    front = tmp_path / "front"
    front.mkdir()
    words = f'echo "$@" >> {tmp_path}/asked; while [[ $1 != image.sif && $1 != */image.sif ]]; do shift; done; shift'
    (front / "apptainer").write_text(f'#!/bin/bash\n{words}\nshift\nexec {sys.executable} "$@"\n')
    (front / "apptainer").chmod(0o755)
    life.cli.env["PATH"] = f"{front}:{life.cli.env['PATH']}"
    (tmp_path / "image.sif").touch()
    life.launch(executor={"env": {"container": "image.sif", "container_args": ["--nv"]}}, tasks=2)
    life.finish()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith(f"exec --pwd={tmp_path} --nv {tmp_path}/image.sif python -I -S -c # stagger: run ")
    # The launch cannot run the image's Python: the first of the two tasks has made the bundle.
    assert (life.run / "launches" / "1" / "settings.bundle").stat().st_size > 500_000
