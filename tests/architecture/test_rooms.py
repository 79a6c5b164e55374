"""The rooms of the package: imports point down only, and form no circle. docs/ARCHITECTURE.md shows the rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import stagger
from tests.conftest import ROOT

PACKAGE = Path(stagger.__file__).parent

#: From the roof to the ground. A file imports from rooms below its own, or from its own. Imports inside functions and
#: for types count too, since circles hide behind them.
ROOMS = (
    "__main__",
    "cli",
    "api",
    "launch",
    "doctor",
    "status",
    "executor",
    "blocks",
    "task",
    "plan",
    "rundir",
    "models",
    "steps",
    "spec",
    "datatrove",
    "pipeline",
    "bundle",
    "storage",
    "start",
    "slurm",
)

#: Files that every room may use. They may use one another.
GROUND = ("errors", "backoff", "progress", "ranks", "shipped", "terminal")


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file. The name of an `__init__.py` is that of its folder."""
    files = sorted(package.rglob("*.py"))
    return {
        ".".join([package.name, *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in files
    }


def imported(path: Path, known: set[str], package: str) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in known and name != package}


def imports(package: Path) -> dict[str, set[str]]:
    files = modules(package)
    return {name: imported(path, set(files), package.name) - {name} for name, path in files.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for module in edges[pending.pop()] - seen:
                seen.add(module)
                pending.append(module)
        return seen

    far = {name: reached(name) for name in edges}
    groups = {frozenset(other for other in far[name] if name in far[other]) for name in edges if name in far[name]}
    return sorted(sorted(group) for group in groups)


def room(module: str) -> str:
    return module.split(".")[1]


def upward(edges: dict[str, set[str]]) -> list[str]:
    """The imports that point up, as `importer -> imported`."""
    depth = {name: number for number, name in enumerate(ROOMS)} | dict.fromkeys(GROUND, len(ROOMS))
    inside = {name: targets for name, targets in edges.items() if "." in name}
    return [
        f"{name} -> {target}"
        for name, targets in inside.items()
        for target in sorted(targets)
        if depth[room(target)] < depth[room(name)]
    ]


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circles(imports(PACKAGE)) == []


def test_imports_point_down_only() -> None:
    assert upward(imports(PACKAGE)) == []


def test_every_room_has_a_place_in_the_order() -> None:
    found = {room(name) for name in modules(PACKAGE) if "." in name}
    assert found == {*ROOMS, *GROUND}
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize(
    "line",
    [
        "from stagger.launch.launch import launch",
        "import stagger.launch.launch",
        "def late():\n    from stagger.launch.launch import launch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stagger.launch import launch",
    ],
)
def test_a_wrong_import_is_found_wherever_it_hides(tmp_path: Path, line: str) -> None:
    """storage is far below launch, which uses it."""
    package = tmp_path / "stagger"
    for name, text in (("launch/launch.py", "from stagger.storage import storage"), ("storage/storage.py", line)):
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text(text)
        (package / name).with_name("__init__.py").touch()
    (package / "__init__.py").touch()
    edges = imports(package)
    assert circles(edges) == [["stagger.launch.launch", "stagger.storage.storage"]]
    assert any(found.startswith("stagger.storage.storage -> stagger.launch") for found in upward(edges))


def test_the_map_has_every_room_in_its_order_and_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert tuple(re.findall(r"^\| \[(\w+)/\]", text, re.MULTILINE)) == ROOMS[1:]
    sections = re.split(r"^### ", text.partition("## What is where")[2], flags=re.MULTILINE)[1:]
    assert [section.partition("/")[0] for section in sections[:-1]] == list(ROOMS[1:])
    folders = [*(f"{room}/" for room in ROOMS[1:]), ""]
    for folder, section in zip(folders, sections, strict=True):
        names = re.findall(r"`([\w/]+(?:\.py|/))`", section)
        assert [name for name in names if not (PACKAGE / folder / name).exists()] == [], folder
