"""Reads YAML safely, within bounds, with the line of every key, and without the surprises of YAML 1.1."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from stagger.errors import StaggerError
from stagger.spec.yaml_mistakes import not_yaml, other_format

#: The largest file and the deepest nesting that are read, and the most values, counting those that aliases stand for.
MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES = 2**20, 100, 100_000

#: What most files are.
PIPELINE = "a pipeline file: it must hold keys such as name, run_dir and pipeline"

#: Characters of a value that an error shows.
SHOWN = 60

#: A path in a document: keys and list positions from the top.
Path = tuple[str | int, ...]


class Lines(dict[Path, int]):
    """The line of every key. `shared` holds the paths of the values that aliases (`*name`) stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: set[Path] = set()
        self._places: dict[int, Path] = {}

    def note(self, node: yaml.Node, path: Path) -> None:
        """Note a value, as often as it is met: an alias is the same node again."""
        self[path] = node.start_mark.line + 1
        if (first := self._places.setdefault(id(node), path)) != path:
            self.shared.add(first)


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
    if node.style is None and text[:1] in CURLY and text:
        raise _wrong(node, f"{_short(text)} begins with a typographic quote, which is part of the text; write ' or \"")
    return text


def _truth(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if text.lower() not in ("true", "false"):
        raise _wrong(node, f"{_short(text)} is neither true nor false")
    return text.lower() == "true"


#: The tags of text, and of the key `<<`.
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"

#: Quotes that word processors make of plain ones.
CURLY = "\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"

#: How a file in UTF-16 begins.
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


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


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would not read as text."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def in_one_line(value: Any) -> str:
    """A value as YAML in one line, for messages.

    >>> in_one_line({"on": ["12:00:00", "12"], "path": "*.gz"})
    "{on: ['12:00:00', '12'], path: '*.gz'}"
    """
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return str(text).removesuffix("\n...\n").strip()


def parse_value(text: str, where: str = "") -> Any:
    """Parse `text` like a value in a YAML file. `where` names its place, in errors. Raises StaggerError when it is not
    valid YAML. A glob such as `*.gz` needs no quotes here: there is nothing that an alias could stand for.
    """
    if text.startswith("*") and text.isprintable():
        return text
    try:
        value, _ = _parsed(text, "")
    except StaggerError as error:
        words = str(error).rpartition(": not valid YAML: ")[2].lstrip(":0123456789 ")
        raise StaggerError(f"{where or 'the value'} {_short(text)}: {words}") from None
    return value


def read_file(path: str, kind: str = PIPELINE) -> tuple[dict[str, Any], Lines]:
    """Read a file, and parse it as `parse_file` does. Raises StaggerError also when it cannot be read."""
    try:
        with open(path, "rb") as opened:
            data = opened.read(4 * MAX_CHARACTERS + 4)
    except OSError as error:
        raise StaggerError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_file(_decoded(data, path), path, kind)


def _decoded(data: bytes, path: str) -> str:
    """The text of a file. Raises StaggerError, with the line, when it is not UTF-8."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        if data.startswith(UTF_16):
            raise StaggerError(f"{path} is UTF-16; save it as UTF-8.") from None
        before = data[: error.start]
        if b"\0" in data[:1024] or data.startswith(b"\x1f\x8b"):
            raise StaggerError(f"{path} is no text file, but a binary one; give a file in YAML.") from None
        if error.end == len(data) and error.reason == "unexpected end of data" and len(data) > MAX_CHARACTERS:
            return before.decode("utf-8-sig")
        place = f"{path}:{before.count(10) + 1}"
        raise StaggerError(
            f"{place}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8."
        ) from None


def parse_file(text: str, file: str, kind: str = PIPELINE) -> tuple[dict[str, Any], Lines]:
    """Parse a file into its content and the line of every key. `kind` says what it should be, in errors.

    Raises StaggerError when it is not a YAML mapping.
    """
    content, lines = _parsed(text, file, file_kind=True)
    if not isinstance(content, dict):
        if content is None:
            raise StaggerError(f"{file} is empty, and so not {kind}.")
        what = other_format(text) or f"it holds {'a list' if isinstance(content, list) else 'text'}"
        raise StaggerError(f"{file} is not {kind}; {what}.")
    return content, lines


def _parsed(text: str, file: str, file_kind: bool = False) -> tuple[Any, Lines]:
    """The content of `text`, and the line of every key. `file` names it in errors."""
    if len(text) > MAX_CHARACTERS:
        raise StaggerError(f"{file} has more than {MAX_CHARACTERS:,} characters; keep data in files of their own.")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = Lines()
        if node is None:
            return None, lines
        _note_lines(node, (), lines, file)
        return loader.construct_document(node), lines
    except RecursionError:
        raise _too_deep(file) from None
    except yaml.YAMLError as error:
        line, words = not_yaml(error, text)
        end = other_format(text) if file_kind else None
        raise StaggerError(f"{file if line is None else f'{file}:{line}'}: not valid YAML: {end or words}.") from error
    finally:
        if loader is not None:
            loader.dispose()


def _too_deep(file: str) -> StaggerError:
    return StaggerError(f"{file}: more than {MAX_DEPTH} levels of nesting, or an alias (*name) that contains itself.")


def _note_lines(node: yaml.Node, path: Path, lines: Lines, file: str) -> None:
    """Note the line of every key in `lines`. An alias counts as a copy, as it will be for whoever walks the content."""
    if len(path) > MAX_DEPTH:
        raise _too_deep(file)
    if len(lines) >= MAX_VALUES:
        raise StaggerError(f"{file}: more than {MAX_VALUES:,} values, counting those that aliases (*name) stand for.")
    lines.note(node, path)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = _key(key, file)
            below = (*path, name)
            if below in lines:
                place, first = f"{file}:{key.start_mark.line + 1}", lines[below]
                raise StaggerError(f"{place}: the key {_short(name)} is given twice, first in line {first}; keep one.")
            _note_lines(value, below, lines, file)
            lines[below] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), lines, file)


def _key(node: yaml.Node, file: str) -> str:
    """A key. Raises StaggerError when it is no text: JSON has no other keys."""
    place = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode):
        raise StaggerError(f"{place}: a key must be text, not a list or a mapping.")
    if node.tag not in (_TEXT, _MERGE):
        raise StaggerError(f"{place}: a key must be text; put {node.value or 'the empty key'} in quotes.")
    return str(node.value)
