"""Interpreters with stagger installed in each way that users have."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import stagger
from stagger.bundle import bundle_path, task_arguments
from stagger.bundle.make import MAKE
from tests.conftest import Cli, PipelineFiles, documents, jsonl

#: How stagger is installed -> a check that the interpreter finds it there.
INSTALLATIONS = ("editable", "wheel", "customized")


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An interpreter for each way of installing."""
    return {
        "editable": sys.executable,
        "wheel": environment(tmp_path_factory.mktemp("wheel")),
        "customized": customized(environment(tmp_path_factory.mktemp("customized"))),
    }


def environment(folder: Path) -> str:
    """A new virtual environment that holds stagger's files, as a wheel installs them; a .pth file leads to the rest."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = packages_of(folder)
    shutil.copytree(Path(stagger.__file__).parent, packages / "stagger")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(folder / "bin" / "python")


def packages_of(folder: Path) -> Path:
    (found,) = folder.glob("lib/python3*/site-packages")
    return found


def customized(python: str) -> str:
    """Add what can be in site-packages: a .pth file that runs code, a finder of an editable project, sitecustomize."""
    folder = Path(python).parents[1]
    packages = packages_of(folder)
    (folder / "elsewhere.py").write_text("NAME = 'behind a finder'\n")
    (packages / "finder_of_a_project.py").write_text(
        "import sys\n"
        "from importlib.util import spec_from_file_location\n"
        "class Finder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        return spec_from_file_location(name, {str(folder / 'elsewhere.py')!r})"
        " if name == 'behind_a_finder' else None\n"
        "def install():\n"
        "    sys.meta_path.append(Finder)\n"
    )
    (packages / "project.pth").write_text("import finder_of_a_project; finder_of_a_project.install()\n")
    (packages / "namespace.pth").write_text("import sys; sys._getframe(1).f_locals['sitedir']\n")
    (packages / "sitecustomize.py").write_text("import builtins\nbuiltins.customized = True\n")
    return python


@dataclass
class Task:
    """One rank of a launched run, which an interpreter can run in both ways."""

    run: Path
    settings: str

    def bundle(self, python: str = sys.executable) -> Path:
        """Make the bundle for an interpreter."""
        path = bundle_path(self.settings)
        subprocess.run([python, "-I", "-S", "-c", MAKE, path, "stagger.steps.jsonl"], check=True, capture_output=True)
        return Path(path)

    def command(self, python: str = sys.executable) -> list[str]:
        """The command of job scripts, for rank 1."""
        return [python, *task_arguments(), self.settings, "1"]

    def start(self, python: str = sys.executable) -> str:
        """Run rank 1 as a job script does. Returns what it printed."""
        return self.run_command(self.command(python))

    def start_plainly(self, python: str = sys.executable) -> str:
        """Run rank 1 as a user's own template does, without a bundle."""
        return self.run_command([python, "-I", "-m", "stagger.task", self.settings, "1"])

    def clear(self) -> None:
        """Make rank 1 undone."""
        for folder in ("completions", "commits", "logs"):
            for file in self.run.glob(f"{folder}/00001*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()

    def run_command(self, command: list[str]) -> str:
        self.clear()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def output(self) -> bytes:
        (file,) = self.run.parent.glob("run-output/00001*")
        return file.read_bytes()


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A run of which rank 0 is done; the step of all ranks notes what it sees."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "input").mkdir()
    for rank in range(2):
        (folder / "input" / f"shard-{rank}.jsonl").write_bytes(jsonl(documents(rank, 1)))
    (folder / "my_probe.py").write_text(Path(__file__).with_name("probe_steps.py").read_text())
    file = PipelineFiles(folder, folder / "input")(steps=("my_probe:probe",), tasks=2, compression=None)
    cli = Cli(folder)
    cli.env["XDG_CACHE_HOME"] = str(folder / "cache")
    cli("launch", file, "--limit", 1, check=0)
    return Task(folder / "run", str(folder / "run" / "launches" / "1" / "settings.json"))


@pytest.fixture
def task(launched: Task) -> Iterator[Task]:
    """That run, without a bundle."""
    bundle = Path(bundle_path(launched.settings))
    yield launched
    if bundle.is_dir():
        bundle.rmdir()
    bundle.unlink(missing_ok=True)
