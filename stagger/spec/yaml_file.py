"""Reads YAML safely, with the line of every key, and without the surprises of YAML 1.1."""

from __future__ import annotations

import re
from typing import Any

import yaml

from stagger.errors import StaggerError

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
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten, not eight.


def parse_value(text: str) -> Any:
    """Parse `text` like a value in a YAML file. Raises StaggerError when it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise StaggerError(f"{text!r} is not a YAML value: {getattr(error, 'problem', None) or error}.") from error


def parse_file(text: str, file: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Parse a file into its content and the line of every key. Raises StaggerError when it is not a YAML mapping."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise StaggerError(f"{file} is not a pipeline file: it must hold keys such as name, run_dir and pipeline.")
        lines: dict[Path, int] = {}
        _note_lines(node, (), lines, file)
        return loader.construct_document(node), lines
    except RecursionError:
        raise StaggerError(f"{file}: an alias (*name) contains itself; remove it.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise StaggerError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    finally:
        loader.dispose()


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int], file: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            if below in lines:
                raise StaggerError(f"{file}:{key.start_mark.line + 1}: the key {key.value!r} is given twice.")
            _note_lines(value, below, lines, file)
            lines[below] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), lines, file)
