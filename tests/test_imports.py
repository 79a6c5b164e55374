"""What a task imports, and which way imports point: start-up is multiplied by thousands."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stagger
from stagger.task import TaskSettings
from tests.conftest import Cli, PipelineFiles

PACKAGE = Path(stagger.__file__).parent

#: What a launch needs, and a task on local paths must never import.
NOT_IN_A_TASK = {
    "aiobotocore",
    "asyncio",
    "botocore",
    "cloudpickle",
    "concurrent.futures",
    "fastwarc",
    "fsspec",
    "jinja2",
    "logging",
    "loguru",
    "multiprocessing",
    "numpy",
    "obstore",
    "pyarrow",
    "pydantic",
    "random",
    "rich",
    "s3fs",
    "scipy",
    "submitit",
    "typer",
    "yaml",
}


def imported_by(code: str, *arguments: str, folder: Path) -> set[str]:
    program = f"import sys\n{code}\nprint('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    assert not imported_by("import stagger", folder=tmp_path) & NOT_IN_A_TASK


def test_the_command_line_imports_no_numerics(tmp_path: Path) -> None:
    assert not imported_by("import stagger.cli.main", folder=tmp_path) & {"numpy", "scipy"}


def test_a_block_server_imports_numpy_and_no_more(tmp_path: Path) -> None:
    found = imported_by(
        "import stagger.blocks.step, stagger.blocks.server.block_server, stagger.blocks.server.simulated_host",
        folder=tmp_path,
    )
    assert not found & {"pydantic", "loguru", "typer", "jinja2", "rich", "scipy", "submitit", "fsspec"}


def test_a_task_on_local_paths_imports_only_what_it_uses(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    cli("launch", pipeline_file(compression=None), "--limit", 1, check=0)
    launch = json.loads((tmp_path / "run" / "launches" / "1" / "launch.json").read_text())
    code = "from stagger.task.__main__ import main\nassert main(sys.argv[1:]) == 0"
    found = imported_by(code, launch["settings"], "1", folder=tmp_path)
    assert (tmp_path / "run" / "completions" / "00001.json").exists()
    assert "stagger.task.attempt" in found
    assert not found & NOT_IN_A_TASK
    assert not {module for module in found if module.startswith(("stagger.executor", "stagger.spec", "stagger.cli"))}


def test_a_task_makes_few_file_system_calls_before_its_first_read(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A count, not a time: at most 800 from the interpreter's start to the first shard."""
    cli("launch", pipeline_file(), "--limit", 1, check=0)
    settings = json.loads((tmp_path / "run" / "launches" / "1" / "launch.json").read_text())["settings"]
    trace = tmp_path / "trace"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    task = [sys.executable, "-I", "-m", "stagger.task", settings, "1"]
    subprocess.run(task, env=env, check=True)  # So that the byte code is there.
    subprocess.run(["strace", "-f", "-o", trace, "-e", "trace=%file,getdents64", *task], env=env, check=True)
    lines = trace.read_text(errors="replace").splitlines()
    first = next(number for number, line in enumerate(lines) if "/input/shard-" in line)
    assert first <= 800


#: What decides, on plain values alone. Each may import others of these.
PURE = {
    "backoff",
    "errors",
    "ranks",
    "blocks/placement/bound",
    "blocks/placement/joint_moves",
    "blocks/placement/own_gain",
    "blocks/placement/petals",
    "blocks/placement/rules",
    "blocks/simulation/policies",
    "blocks/simulation/steps",
    "blocks/simulation/swarm",
    "blocks/simulation/traces",
    "executor/activity",
    "pipeline/document",
    "plan/sharding",
    "slurm/answers",
    "slurm/states",
    "spec/block_settings",
    "start/account",
    "start/delays",
    "start/forecast",
    "start/herd",
    "status/efficiency",
    "storage/faults",
}

#: Modules that touch the world.
WORLD = {"asyncio", "getpass", "os", "shutil", "socket", "subprocess", "tempfile", "threading", "time"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_touch_neither_slurm_nor_storage_nor_the_machine(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {module for module in modules if module.startswith("stagger.")}
    assert {module.removeprefix("stagger.").replace(".", "/") for module in ours} <= PURE
    others = {module.partition(".")[0] for module in modules - ours}
    assert others <= {*sys.stdlib_module_names, "numpy", "scipy"}
    kernel = {"os"} if name == "start/delays" else set()  # It draws from os.urandom.
    assert not others & (WORLD - kernel)


def importers(module: str) -> list[str]:
    """The modules of the package that import `module`."""

    def imports(path: Path) -> bool:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        return any(name.partition(".")[0] == module for name in names)

    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if imports(path))


def test_one_place_talks_to_slurm_and_one_to_each_storage() -> None:
    assert importers("submitit") == ["slurm/own_job.py", "slurm/sbatch.py"]
    assert importers("subprocess") == ["executor/workers.py", "slurm/command.py", "slurm/own_job.py"]
    assert importers("fsspec") == ["steps/reader.py", "storage/fsspec_store.py", "storage/s3/s3fs_engine.py"]
    assert importers("s3fs") == ["storage/s3/s3fs_engine.py"]
    assert importers("obstore") == ["storage/s3/obstore_engine.py"]
    assert importers("botocore") == ["storage/s3/obstore_engine.py", "storage/s3/s3fs_engine.py"]
    assert importers("fastwarc") == ["steps/http_body.py"]
    assert importers("pyarrow") == ["steps/arrow_types.py", "steps/parquet.py", "steps/parquet_writer.py"]
    assert {name.partition("/")[0] for name in importers("numpy")} == {"blocks"}
    assert importers("scipy") == ["blocks/placement/bound.py"]
    assert importers("pickle") == importers("cloudpickle") == ["pipeline/pickled.py"]


def test_settings_survive_the_job_script() -> None:
    settings = TaskSettings("/run dir", "f00d", 3, "/", ["/a"], {"s3": {"endpoint_url": "http://x"}}, window_s=9)
    assert TaskSettings.from_json(settings.to_json()) == settings
