"""One place talks to Slurm, and one to each storage. Modules that decide touch neither."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import stagger

PACKAGE = Path(stagger.__file__).parent


#: Modules that decide, from plain values alone. They may import one another.
PURE = {
    "backoff",
    "errors",
    "ranks",
    "blocks/placement/bound",
    "blocks/placement/joint_moves",
    "blocks/placement/loading_slots",
    "blocks/placement/noise",
    "blocks/placement/own_gain",
    "blocks/placement/petals",
    "blocks/placement/rules",
    "blocks/placement/spans",
    "blocks/serving/routing",
    "blocks/simulation/allocation",
    "blocks/simulation/helix",
    "blocks/simulation/parallax",
    "blocks/simulation/policies",
    "blocks/simulation/steps",
    "blocks/simulation/swarm",
    "blocks/simulation/traces",
    "blocks/simulation/upper_bounds",
    "cli/tracebacks",
    "executor/activity",
    "pipeline/__init__",
    "pipeline/shard_table",
    "plan/sharding",
    "rundir/completion_table",
    "slurm/answers",
    "slurm/states",
    "spec/block_settings",
    "start/account",
    "start/delays",
    "start/forecast",
    "start/herd",
    "status/efficiency",
    "storage/__init__",
    "storage/faults",
    "storage/s3/key_space",
    "storage/s3/refusals",
    "storage/s3/signature",
}

#: Modules that touch the machine, its clock or the network.
WORLD = {"asyncio", "getpass", "os", "shutil", "socket", "subprocess", "tempfile", "threading", "time"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_touch_neither_slurm_nor_storage_nor_the_machine(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {module for module in modules if module.startswith("stagger.")}
    pure = {name.removesuffix("/__init__") for name in PURE}
    assert {module.removeprefix("stagger.").replace(".", "/") for module in ours} <= pure
    others = {module.partition(".")[0] for module in modules - ours}
    assert others <= {*sys.stdlib_module_names, "isal", "numpy", "scipy"}
    kernel = {"os"} if name == "start/delays" else set()  # It uses os.urandom.
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
    assert importers("subprocess") == [
        "blocks/server/tending.py",
        "bundle/cache.py",
        "bundle/first.py",
        "doctor/metadata.py",
        "doctor/start.py",
        "launch/background.py",
        "slurm/command.py",
        "slurm/own_job.py",
        "task/crew.py",
        "task/several_nodes.py",
    ]
    assert importers("fsspec") == [
        "datatrove/attempt_files.py",
        "steps/listing.py",
        "storage/fsspec_store.py",
        "storage/s3/s3fs_engine.py",
    ]
    assert importers("s3fs") == ["storage/s3/s3fs_engine.py"]
    assert importers("obstore") == ["storage/s3/obstore_engine.py"]
    assert importers("botocore") == ["storage/s3/obstore_engine.py", "storage/s3/s3fs_engine.py"]
    assert importers("fastwarc") == ["steps/http_body.py"]
    assert importers("pyarrow") == [
        "steps/arrow.py",
        "steps/arrow_types.py",
        "steps/columns.py",
        "steps/parquet.py",
        "steps/parquet_writer.py",
    ]
    assert {name.partition("/")[0] for name in importers("numpy")} == {"blocks", "models"}
    assert {name.rpartition("/")[0] for name in importers("zmq")} == {"blocks/serving"}
    assert importers("scipy") == ["blocks/placement/bound.py", "blocks/simulation/helix.py"]
    assert importers("pickle") == importers("cloudpickle") == ["pipeline/pickled.py"]
