"""stagger looks for hooks of steps by name, and one file documents all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import stagger
from stagger.pipeline import hooks
from stagger.pipeline.hooks import Reader, Writer
from stagger.steps.jsonl import ReadJsonl, WriteJsonl

PACKAGE = Path(stagger.__file__).parent


def looked_for(path: Path) -> set[str]:
    """The names that a file passes to hasattr, getattr or steps_with."""
    places = {"hasattr": 1, "getattr": 1, "steps_with": 0}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in places:
            name = node.args[places[node.func.id]]
            found |= {name.value} if isinstance(name, ast.Constant) and isinstance(name.value, str) else set()
    return found


def test_every_hook_is_documented() -> None:
    files = ("plan/stage_plan.py", "plan/stage_steps.py", "task/attempt.py")
    asked = set().union(*(looked_for(PACKAGE / file) for file in files))
    protocols = (hooks.Bound, hooks.Costly, hooks.Counting, hooks.Reader, hooks.Writer)
    documented = {name: getattr(protocol, name) for protocol in protocols for name in vars(protocol) if name[0] != "_"}
    assert asked - {"__call__"} | {"path_of", "planned_outputs"} == documented.keys()
    assert all(hook.__doc__ for hook in documented.values())


def test_the_steps_that_ship_have_the_hooks_of_their_kind() -> None:
    """mypy compares the signatures."""
    reader: Reader = ReadJsonl("input")
    writer: Writer = WriteJsonl("output")
    assert (reader.allow_empty, writer.shard_by_shard) == (False, False)
