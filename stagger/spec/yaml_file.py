"""Reads YAML safely, within bounds, with the line of every key, and without the surprises of YAML 1.1."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from stagger.errors import StaggerError

#: The largest file and the deepest nesting that are read, and the most values, counting those that aliases stand for.
MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES = 2**20, 100, 100_000

#: What most files are.
PIPELINE = "a pipeline file: it must hold keys such as name, run_dir and pipeline"

#: Characters of a value that an error shows.
SHOWN = 60

#: A path in a document: keys and list positions from the top.
Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's rules for plain values: 12:00:00, yes, on and 2024-01-01 are strings."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile("^$")))


def _number(parse: Callable[[str], Any], what: str) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]:
    """A constructor of numbers: 010 is ten, not eight, and integers beyond 64 bits are errors with their place."""

    def construct(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            number = parse(text)
        except ValueError:  # Also more digits than Python converts.
            raise _wrong(node, f"{_short(text)} is not {what}") from None
        if isinstance(number, int) and not -(2**63) <= number < 2**64:
            raise _wrong(node, f"{_short(text)} has more than 64 bits")
        return number

    return construct


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if "\0" in text or (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)):
        raise _wrong(node, f"{_short(text)} holds a NUL or half a character, which no path and no JSON can hold")
    return text


def _truth(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if text.lower() not in ("true", "false"):
        raise _wrong(node, f"{_short(text)} is neither true nor false")
    return text.lower() == "true"


def _wrong(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


#: Only what JSON can hold has a constructor: no dates, sets, binary data or ordered pairs, even with an explicit tag.
_Loader.yaml_constructors = {
    f"tag:yaml.org,2002:{_tag}": _construct
    for _tag, _construct in (
        ("null", yaml.SafeLoader.construct_yaml_null),
        ("bool", _truth),
        ("int", _number(int, "an integer")),
        ("float", _number(float, "a number")),
        ("str", _text),
        ("seq", yaml.SafeLoader.construct_yaml_seq),
        ("map", yaml.SafeLoader.construct_yaml_map),
    )
}
_Loader.yaml_constructors[None] = yaml.SafeLoader.construct_undefined


def parse_value(text: str) -> Any:
    """Parse `text` like a value in a YAML file. Raises StaggerError when it is not valid YAML."""
    value, _ = _parsed(text, f"the value {_short(text)}")
    return value


def read_file(path: str, kind: str = PIPELINE) -> tuple[dict[str, Any], dict[Path, int]]:
    """Read a file, and parse it as `parse_file` does. Raises StaggerError also when it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise StaggerError(f"{path} cannot be read: {error}.") from error
    return parse_file(text, path, kind)


def parse_file(text: str, file: str, kind: str = PIPELINE) -> tuple[dict[str, Any], dict[Path, int]]:
    """Parse a file into its content and the line of every key. `kind` says what it should be, in errors.

    Raises StaggerError when it is not a YAML mapping.
    """
    content, lines = _parsed(text, file)
    if not isinstance(content, dict):
        raise StaggerError(f"{file} is not {kind}.")
    return content, lines


def _parsed(text: str, file: str) -> tuple[Any, dict[Path, int]]:
    """The content of `text`, and the line of every key. `file` names it in errors."""
    if len(text) > MAX_CHARACTERS:
        raise StaggerError(f"{file} has more than {MAX_CHARACTERS:,} characters; keep data in files of their own.")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is None:
            return None, lines
        _note_lines(node, (), lines, file)
        return loader.construct_document(node), lines
    except RecursionError:
        raise _too_deep(file) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        words = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise StaggerError(f"{place}: not valid YAML: {words}.") from error
    finally:
        if loader is not None:
            loader.dispose()


def _too_deep(file: str) -> StaggerError:
    return StaggerError(f"{file}: more than {MAX_DEPTH} levels of nesting, or an alias (*name) that contains itself.")


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int], file: str) -> None:
    """Note the line of every key in `lines`. An alias counts as a copy, as it will be for whoever walks the content."""
    if len(path) > MAX_DEPTH:
        raise _too_deep(file)
    if len(lines) >= MAX_VALUES:
        raise StaggerError(f"{file}: more than {MAX_VALUES:,} values, counting those that aliases (*name) stand for.")
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = _key(key)
            below = (*path, name)
            if below in lines:
                raise StaggerError(f"{file}:{key.start_mark.line + 1}: the key {_short(name)} is given twice.")
            _note_lines(value, below, lines, file)
            lines[below] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), lines, file)


def _key(node: yaml.Node) -> str:
    """A key, for the places in errors. Keys that are no scalars are refused later, as they cannot be hashed."""
    return node.value if isinstance(node, yaml.ScalarNode) else "?"
