"""Numbers agree with their nouns in every sentence: `counted` makes them, and no sentence says `1 ranks`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stagger

PACKAGE = Path(stagger.__file__).parent

#: Things that sentences count.
NOUNS = (
    "arrays|blocks|bytes|characters|checks|columns|cores|documents|errors|failures|fields|files|folders|frames|jobs|keys"
    "|lines|links|nodes|parts|processors|ranks|records|requests|retries|rows|servers|shards|stages"
    "|steps|tasks|times|tries|uploads|values"
)

#: What follows a number in a sentence: at most one adjective, which does not end with `s`, and the noun.
COUNTED = re.compile(rf" (?:[a-z]*[a-rt-z] )?(?:{NOUNS})\b(?!/| per)")


def sentences(tree: ast.Module) -> Iterator[ast.JoinedStr]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr))


def is_number(value: ast.expr) -> bool:
    """Whether a value in a sentence can be the number 1: it is no constant of a module, and no call that makes text."""
    table = value.value if isinstance(value, ast.Subscript) else value
    names = [node.id for node in ast.walk(table) if isinstance(node, ast.Name)]
    if names and all(map(str.isupper, names)):
        return False
    if isinstance(value, ast.Name):
        return True
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in ("len", "sum", "round", "int", "max", "min")
    return isinstance(value, (ast.Attribute, ast.Subscript, ast.BinOp))


def mistakes(code: str) -> list[int]:
    """The lines of sentences that put a number before a plural noun by themselves, or make a plural by an `s`."""
    found = []
    for sentence in sentences(ast.parse(code)):
        for value, after in zip(sentence.values, [*sentence.values[1:], None], strict=True):
            if not isinstance(value, ast.FormattedValue):
                continue
            text = after.value if isinstance(after, ast.Constant) else ""
            before_noun = COUNTED.match(str(text)) and is_number(value.value)
            plural = isinstance(value.value, ast.IfExp) and "s" in (
                getattr(value.value.body, "value", ""),
                getattr(value.value.orelse, "value", ""),
            )
            plural |= isinstance(value.value, ast.BinOp) and getattr(value.value.left, "value", "") == "s"
            if before_noun or plural:
                found.append(sentence.lineno)
    return found


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("f'{n} ranks are done'", True),
        ("f'{len(found)} more files'", True),
        ('f\'{n} rank{"s" if n > 1 else ""}\'', True),
        ("f'{n} rank{\"s\" * (n > 1)}'", True),
        ("f'{len(found) - SHOWN} more files'", True),
        ("f'{counted(n, \"rank\")} of {MOST} jobs'", False),
        ("f'{counted(n, \"rank\")} of {name}'", False),
    ],
)
def test_the_rule_itself(code: str, wrong: bool) -> None:
    assert bool(mistakes(code)) == wrong


def test_every_number_agrees_with_its_noun() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if lines := mistakes(path.read_text()):
            found[str(path.relative_to(PACKAGE))] = lines
    assert found == {}
