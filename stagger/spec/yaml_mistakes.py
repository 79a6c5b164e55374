"""What is wrong with a file that is no YAML, in a person's words: PyYAML's own speak of tokens and productions."""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

#: Characters of a line that a message shows.
SHOWN = 60

#: A value that begins with a character that YAML reads as something else than text.
BEGINS = re.compile(r"""(?:^|[\s\[{,])((?:[^\s\[\]{},:'"#]+):\s+|-\s+)?([*&!@`%|>][^\s,\]}'"#]*)""")

#: A reference to a variable between braces, where its own braces end the mapping.
REFERENCE = re.compile(r"\$\{\w*\}?")

#: A value that begins with braces, and goes on after them: `filename: {rank}.jsonl`.
BRACES = re.compile(r"([\w.-]+):\s+(\{[^{}:]*\}+[^\s,}\]]+)")

#: A line of TOML, and one of Python.
TOML = re.compile(r"\s*(\[\[?[\w.\"-]+\]?\]|[\w.-]+\s*=\s*\S.*)\s*(#.*)?")
PYTHON = re.compile(r"(import \w|from [\w.]+ import |def \w+\(|class \w+[(:])")

#: Spaces that no key of a keyboard types, and that YAML does not take for spaces.
ODD_SPACES = re.compile("[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]")


def not_yaml(error: yaml.YAMLError, text: str) -> tuple[int | None, str]:
    """The line of a mistake, from 1, and what it is. The line is None if it is unknown."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return line, f"the character U+{code:04X} cannot be in a text file; remove it"
    problem, context = str(getattr(error, "problem", "") or ""), str(getattr(error, "context", "") or "")
    mark, begin = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark is None:
        return None, str(error).partition("\n")[0]
    lines = [*text.splitlines(), ""]
    for pattern, sentence in MISTAKES:
        if re.search(pattern, f"{context}; {problem}"):
            place = begin if begin is not None and sentence in FROM_BEGIN else mark
            number = min(place.line, len(lines) - 1)
            if ODD_SPACES.search(lines[number]):
                return number + 1, "the line holds a space that is not a plain one, as from a web page; type it again"
            return number + 1, sentence(lines[number])
    return mark.line + 1, problem


def other_format(text: str) -> str | None:
    """What a file is that holds no mapping, if that can be seen: TOML, or a Python script."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if any(PYTHON.match(line) for line in lines):
        return "it looks like a Python script; run it with: python"
    if lines and TOML.fullmatch(lines[0]):
        return "it looks like TOML; write it as YAML: `key: value`"
    return None


def _quote(line: str) -> str:
    """The sentence about a value that must be in quotes."""
    found = BEGINS.search(line)
    if found is None:
        return "a value that begins with one of * & ! @ ` % > | must be in quotes"
    key, value = found[1] or "", found[2]
    return f"a value that begins with {value[0]} must be in quotes; write {_shown(key)}'{_shown(value)}'"


def _alias(line: str) -> str:
    found = BEGINS.search(line)
    name = found[2] if found and found[2].startswith("*") else "*name"
    return f"{_quote(line)} (without quotes, {_shown(name)} stands for a value marked with &{_shown(name[1:])})"


def _tag(line: str) -> str:
    """The sentence about `!name`, which is a note about a value's type: `!!float`."""
    found = BEGINS.search(line)
    if found and found[2].startswith("!!"):
        return f"the tag {_shown(found[2])} is not allowed here; write the value without it"
    return _quote(line)


def _colon(line: str) -> str:
    if found := re.match(r"\s*(removed|stateless):\s", line):
        return f"{found[1]} stands beside a step whose name ends with a colon; write `- name:` in the line above"
    found = re.match(r"\s*(?:-\s+)?([^\s:#'\"]+):\s+(.*:(?:\s.*|$))", line)
    if found:
        return f"a value with a colon and a space must be in quotes; write {_shown(found[1])}: '{_shown(found[2])}'"
    return "the line is indented differently from the keys beside it; let keys of one mapping begin in the same column"


def _no_space(line: str) -> str:
    if found := re.match(r"\s*(?:-\s+)?([\w.-]+):(\S.*)", line):
        return f"a space is missing after the colon; write {_shown(found[1])}: {_shown(found[2])}"
    if found := re.match(r"\s*([\w.-]+)\s*=\s*(\S.*)", line):
        return f"write {_shown(found[1])}: {_shown(found[2])}, with a colon"
    return (
        f"{_shown(line.strip())!r} is no key with a value; write `key: value`, or indent it as part of the line above"
    )


def _indented(line: str) -> str:
    if found := re.match(r"\s*-([^\s-].*)", line):
        return f"a space is missing after the dash; write - {_shown(found[1])}"
    if found := BRACES.search(line):
        return f"a value that begins with {{ must be in quotes; write {found[1]}: '{_shown(found[2])}'"
    return (
        "the line is indented differently from the lines beside it; let all items of a list, or all keys of a mapping,"
        " begin in the same column"
    )


def _bracket(line: str) -> str:
    if REFERENCE.search(line):
        return "between braces, a value with ${NAME} must be in quotes; write for example {path: '${NAME}/input'}"
    if found := BRACES.search(line):
        return f"a value that begins with {{ must be in quotes; write {found[1]}: '{_shown(found[2])}'"
    if re.search(r"""(["'])[^"']*\1\w""", line):
        return "a quote within quotes ends the text; put text with double quotes into single ones"
    if re.search(r":\s+[^\s'\"{\[,}]+:\s", line):
        return "a value with a colon and a space must be in quotes"
    return "a bracket or brace is open that is not closed where it should be; close it, and separate items by commas"


def _tab(line: str) -> str:
    return "a tab cannot indent or separate in YAML; use spaces"


def _plain(sentence: str) -> Callable[[str], str]:
    return lambda line: sentence


_unclosed_quote = _plain("the quote that opens here is not closed; close it")

#: What PyYAML says -> the sentence about it, made from the line. The first that fits counts.
MISTAKES: tuple[tuple[str, Callable[[str], str]], ...] = (
    (r"found character '\\t'", _tab),
    (r"scanning an alias", _quote),
    (r"undefined alias", _alias),
    (r"duplicate anchor", _plain("this mark (&name) is given twice; put the value in quotes, or rename the mark")),
    (r"scanning an anchor|found character '[@`%&*!|>]'", _quote),
    (r"scanning a tag|could not determine a constructor|expected a .* node", _tag),
    (r"scanning a directive|expected '<document start>'", _plain("write each setting as `key: value`")),
    (r"scanning a block scalar", _quote),
    (r"scanning a quoted scalar", _unclosed_quote),
    (r"double-quoted scalar", _plain("in double quotes a backslash needs another; use single quotes")),
    (r"another document", _plain("`---` begins a second document here; write one file for each")),
    (r"mapping values are not allowed", _colon),
    (r"expected <block end>", _indented),
    (r"scanning a simple key", _no_space),
    (r"parsing a flow|flow (mapping|sequence|node)", _bracket),
    (r"unhashable key", _plain("a key must be text, not a list or a mapping; close `{` and `[` behind values only")),
    (r"for merging", _plain("`<<:` takes in a mapping; name one by its mark (*name)")),
)  # fmt: skip

#: Sentences about the place where something begins that does not end well.
FROM_BEGIN = (_unclosed_quote, _no_space, _bracket)


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
