"""The wheel: its shipped files, and no path of the machine that it was built on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("stagger_slurm-*.whl")
    return built


def test_the_wheel_ships_pipelines_templates_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "stagger/py.typed",
        "stagger/status/report.html.j2",
        "stagger/pipelines/quickstart.yaml",
        "stagger/slurm_templates/array.sbatch.j2",
        "stagger/examples/data/devils-dictionary-0.jsonl.gz",
    ):
        assert name in names
    assert not {name for name in names if name.startswith(("tests", "benchmarks"))}


def test_an_installed_stagger_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"import stagger; assert stagger.__file__.startswith({str(site)!r})\n"
        "from stagger.cli.main import main; sys.argv = ['stagger', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(
        [*command, "launch", "quickstart", "--dry-run", "--executor", "slurm"],
        cwd=work,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "8 shards" in shown.stdout
    assert list(work.iterdir()) == []


def test_no_path_of_a_machine_is_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(rb"/(?:work|root|farm)/|\.\./shared")
    found = [name for name in listed.stdout.split() if private.search((ROOT / name).read_bytes())]
    assert [name for name in found if name != "tests/architecture/test_package.py"] == []


def test_public_names_are_there() -> None:
    import stagger

    for name in stagger.__all__:
        assert getattr(stagger, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        stagger.Nonsense  # noqa: B018
