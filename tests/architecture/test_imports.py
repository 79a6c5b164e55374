"""The imports of a task: thousands of tasks multiply the cost of each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stagger
from stagger.bundle import task_arguments
from tests.conftest import Cli, PipelineFiles

#: Modules that a launch needs, and that a task on local paths must never import.
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
    "pynvml",
    "random",
    "rich",
    "s3fs",
    "safetensors",
    "scipy",
    "submitit",
    "torch",
    "transformers",
    "typer",
    "yaml",
    "zmq",
}

#: What only steps and hosts of models import: a process takes seconds and hundreds of MB for it.
OF_MODELS = {"torch", "transformers", "safetensors", "zmq", "pynvml"}

#: Where modules import that at their top. Others import these modules late: tests/models/test_imports.py.
WITH_MODELS = ("models/", "blocks/serving/", "blocks/transformer_host.py")


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


#: What many commands need, and not every one. Each takes milliseconds, and file-system calls, to import.
OF_COMMANDS = {"asyncio", "jinja2", "loguru", "multiprocessing", "obstore", "s3fs", "submitit", "yaml"}

RUN_COMMAND = """
from stagger.cli.main import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""


def rooms_of(modules: set[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("stagger.")}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_what_no_run_is_needed_for_imports_no_more_than_the_command_line(tmp_path: Path, option: str) -> None:
    found = imported_by(RUN_COMMAND, option, folder=tmp_path)
    assert rooms_of(found) == {"cli", "pipeline", "storage", "errors", "ranks", "terminal"}
    assert not {module for module in found if module.startswith(("stagger.pipeline.", "stagger.storage."))} - {
        "stagger.pipeline.names",
        "stagger.storage.storage",
    }
    assert not found & (OF_COMMANDS | {"pydantic"})
    assert "rich" not in found or option == "--help"


@pytest.mark.parametrize("words", ["stagger st", "stagger status --"])
def test_completion_imports_no_more_than_the_command_line(tmp_path: Path, words: str) -> None:
    """The shell runs the command at each press of TAB."""
    asked = {"_STAGGER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = f"import os\nos.environ.update({asked!r})\nsys.argv[0] = 'stagger'{RUN_COMMAND}"
    found = imported_by(code, folder=tmp_path)
    assert rooms_of(found) == {"cli", "pipeline", "storage", "errors", "ranks", "terminal"}
    assert not found & OF_COMMANDS


def test_status_imports_nothing_that_launches(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(), check=0)
    for more in ((), ("--json",)):
        found = imported_by(RUN_COMMAND, "status", str(tmp_path / "run"), *more, folder=tmp_path)
        assert "stagger.status.stage_status" in found
        assert not found & OF_COMMANDS
        assert not rooms_of(found) & {"launch", "doctor", "models", "datatrove"}
        assert not found & {"stagger.executor.job_script", "stagger.spec.step_checks", "stagger.blocks.server"}


def test_no_import_builds_a_model_or_reads_its_descriptions(tmp_path: Path) -> None:
    """pydantic takes milliseconds for each; that finds its plugins in the metadata of all installed packages."""
    code = (
        "import stagger.spec.load, stagger.launch.launch\n"
        "from stagger.spec.base import Model\n"
        "from stagger.spec.descriptions import _of_classes\n"
        "assert len(Model.__subclasses__()) > 5\n"
        "assert not [one for one in Model.__subclasses__() if one.__pydantic_complete__]\n"
        "assert not _of_classes.cache_info().misses"
    )
    assert "stagger.spec.models" in imported_by(code, folder=tmp_path)


def test_only_models_and_their_hosts_import_torch_at_the_top() -> None:
    package = Path(stagger.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and modules_of(node) & OF_MODELS
    }
    assert "models/cut.py" in found
    assert {name for name in found if not name.startswith(WITH_MODELS)} == set()


def modules_of(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.partition(".")[0] for name in names}


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
    settings = str(tmp_path / "run" / "launches" / "1" / "settings.json")
    code = "from stagger.task.__main__ import main\nassert main(sys.argv[1:]) == 0"
    found = imported_by(code, settings, "1", folder=tmp_path)
    assert (tmp_path / "run" / "completions" / "00001.json").exists()
    assert "stagger.task.attempt" in found
    assert not found & NOT_IN_A_TASK
    assert not {module for module in found if module.startswith(("stagger.executor", "stagger.spec", "stagger.cli"))}
    assert not found & {"stagger.task.crew", "stagger.task.job_crew", "stagger.slurm.own_job"}
    assert "signal" not in found


@pytest.mark.each_version
def test_a_task_makes_few_file_system_calls_before_its_first_read(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A count, not a time: at most 200 from the interpreter's start to the first shard, 770 without a bundle.

    Python 3.10 itself has 80 more without a bundle.
    """
    plainly = 770 if sys.version_info >= (3, 11) else 850
    cli("launch", pipeline_file(), "--limit", 1, check=0)
    settings = str(tmp_path / "run" / "launches" / "1" / "settings.json")
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    plain = ["-I", "-m", "stagger.task"]
    subprocess.run([sys.executable, *plain, settings, "3"], env=env, check=True)  # Writes the byte code first.
    for rank, arguments, most in (("1", task_arguments(), 200), ("2", plain, plainly)):
        trace = tmp_path / f"trace-{rank}"
        task = [sys.executable, *arguments, settings, rank]
        subprocess.run(["strace", "-f", "-o", trace, "-e", "trace=%file,getdents64", *task], env=env, check=True)
        lines = trace.read_text(errors="replace").splitlines()
        first = next(number for number, line in enumerate(lines) if "/input/shard-" in line)
        assert first <= most
