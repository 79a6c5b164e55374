"""One place talks to Slurm, one to each storage, and what decides touches neither."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import stagger

PACKAGE = Path(stagger.__file__).parent


def test_pure_modules_import_neither_slurm_nor_storage() -> None:
    for name in ("start", "sharding", "ranks", "document", "errors"):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {module for module in modules if module.startswith("stagger")}, name
        assert {module.partition(".")[0] for module in modules} <= set(sys.stdlib_module_names), name


def importers(module: str) -> list[str]:
    """The modules of the package that import `module`."""

    def imports(path: Path) -> bool:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        return any(name.partition(".")[0] == module for name in names)

    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if imports(path))


def test_one_place_talks_to_slurm_and_one_to_each_storage() -> None:
    assert importers("submitit") == ["slurm/job.py", "slurm/submission.py"]
    assert importers("subprocess") == ["executor/local.py", "slurm/job.py", "slurm/runner.py"]
    assert importers("fsspec") == ["object_store.py", "s3/s3fs_engine.py", "steps/reader.py"]
    assert importers("s3fs") == ["s3/s3fs_engine.py"]
    assert importers("obstore") == ["s3/obstore_engine.py"]
    assert importers("botocore") == ["s3/obstore_engine.py", "s3/s3fs_engine.py"]
    assert importers("fastwarc") == ["steps/warc.py"]
    assert importers("pyarrow") == ["steps/parquet.py", "steps/parquet_writer.py"]
    assert {name.partition("/")[0] for name in importers("numpy")} == {"blocks"}
    assert importers("scipy") == ["blocks/bound.py"]
    assert importers("pickle") == importers("cloudpickle") == ["pickled.py"]
