"""Hooks of steps are found by the class that a step inherits from, and one file documents all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import stagger
from stagger.pipeline import hooks
from stagger.pipeline.hooks import BoundStep, Reader, Writer
from stagger.steps.jsonl import ReadJsonl, WriteJsonl

PACKAGE = Path(stagger.__file__).parent
HOOKS = {name for kind in (BoundStep, Reader, Writer) for name in vars(kind) if name[0] != "_"}


def looked_for(path: Path) -> set[str]:
    """The names that a file passes to hasattr or getattr."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            name = node.args[1]
            found |= {name.value} if isinstance(name, ast.Constant) and isinstance(name.value, str) else set()
    return found


def test_no_hook_is_found_by_its_name_alone() -> None:
    files = [path for room in ("plan", "task", "pipeline", "launch", "api") for path in (PACKAGE / room).glob("*.py")]
    assert not HOOKS & set().union(*map(looked_for, files))


def test_every_hook_is_documented() -> None:
    text = Path(hooks.__file__).read_text()
    for kind in (BoundStep, Reader, Writer):
        assert kind.__doc__
        for name in vars(kind):
            hook = vars(kind)[name]
            documented = "\n    #: Whether empty shards are valid" in text if name == "allow_empty" else hook.__doc__
            assert name[0] == "_" or documented


def test_the_steps_that_ship_have_the_hooks_of_their_kind() -> None:
    """mypy compares the signatures."""
    reader: Reader = ReadJsonl("input")
    writer: Writer = WriteJsonl("output")
    assert (reader.allow_empty, writer.shard_by_shard) == (False, False)
