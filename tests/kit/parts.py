"""The parts of the tests that tests/run.sh runs beside one another, as a plug-in of pytest: -p tests.kit.parts."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

#: Folders of tests that no cluster is needed for, about half of their time.
STORAGE = ("promises", "rgw", "rundir", "s3", "storage", "task")

#: The files of tests/slurm that run on a second cluster, while the first one runs the others: both take as long.
SECOND_CLUSTER = ("test_block_jobs", "test_node_failure", "test_requeue", "test_site", "test_tries")

#: What imports torch: folders and files that only the Python of .venv-models can run, beside the other parts.
MODELS = (
    "stagger/models",
    "stagger/blocks/serving",
    "stagger/blocks/transformer_host.py",
    "tests/kit/faulty_transformer.py",
    "tests/kit/span_servers.py",
    "tests/models",
    "tests/blocks/serving",
    "tests/datatrove/test_classify_gpu.py",
    "tests/slurm/test_scoring.py",
    "tests/slurm/test_swarm.py",
)

PARTS = ("models", "first-cluster", "second-cluster", "storage", "others")


def part_of(path: Path) -> str:
    if any(path.is_relative_to(TESTS.parent / place) for place in MODELS):
        return "models"
    if not path.is_relative_to(TESTS):
        return "others"
    folder = path.relative_to(TESTS).parts[0]
    if folder == "slurm":
        return "second-cluster" if path.stem in SECOND_CLUSTER else "first-cluster"
    return "storage" if folder in STORAGE else "others"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=PARTS, help="run the tests of this part only")


def pytest_configure(config: pytest.Config) -> None:
    """Leave out files of other parts that were named, for which pytest does not call pytest_ignore_collect."""
    named = {argument: config.invocation_params.dir / argument.partition("::")[0] for argument in config.args}
    part = config.getoption("--part")
    config.args[:] = [name for name, path in named.items() if not path.is_file() or part_of(path) == part]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files of other parts: to import all takes 10 s, and only one part has torch."""
    if collection_path.is_dir():
        return None
    return part_of(collection_path) != config.getoption("--part") or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    config.hook.pytest_deselected(items=[item for item in items if part_of(item.path) != part])
    items[:] = [item for item in items if part_of(item.path) == part]
