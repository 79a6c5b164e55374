"""YAML that is odd, huge or hostile is one sentence with its place, soon."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stagger.errors import StaggerError
from stagger.spec.load import load_file
from stagger.spec.yaml_file import MAX_CHARACTERS, parse_file, parse_value

GOOD = "name: x\nrun_dir: run\npipeline: [read_jsonl: {path: in}]\n"

#: A value -> part of the message. Its key is on line 4.
ODD = {
    "!!int abc": "'abc' is not an integer",
    "!!float zzz": "'zzz' is not a number",
    "!!bool maybe": "'maybe' is neither true nor false",
    "9" * 5000: "is not an integer",
    "9" * 30: "has more than 64 bits",
    "!!timestamp 2024-99-99": "the tag !!timestamp is not allowed here",
    "!!binary aGVsbG8=": "the tag !!binary is not allowed here",
    "!!set {a, b}": "the tag !!set is not allowed here",
    "!!omap [a: 1]": "the tag !!omap is not allowed here",
    "!!python/object:os.system x": "the tag !!python/object:os.system is not allowed here",
    "!!str [a]": "the tag !!str is not allowed here",
    "!!map [a]": "the tag !!map is not allowed here",
    '"\\0"': "holds a NUL",
    '"\\ud800"': "half a character",
    "{? [1, 2] : 3}": "a key must be text, not a list or a mapping",
    "{a: 1, a: 2}": "the key 'a' is given twice",
    "&a [*a]": "more than 100 levels of nesting, or an alias",
    "&a {k: *a}": "more than 100 levels of nesting, or an alias",
    "{<<: 3}": "`<<:` takes in a mapping; name one by its mark (*name)",
    "[" * 3000 + "]" * 3000: "more than 100 levels of nesting",
    "*nothing": "a value that begins with * must be in quotes; write tasks: '*nothing'",
    "\t- a": "a tab cannot indent or separate in YAML",
    "'\x00'": "the character U+0000 cannot be in a text file",
}


@pytest.mark.parametrize("value", ODD)
def test_an_odd_value_is_a_sentence_with_its_place(value: str) -> None:
    with pytest.raises(StaggerError, match=rf"^p\.yaml(:4)?: [^\n]*{re.escape(ODD[value])}[^\n]*\.$"):
        parse_file(f"{GOOD}tasks: {value}\n", "p.yaml")
    if not value.startswith("*"):
        with pytest.raises(StaggerError):
            parse_value(value)


#: A mistake in line 4 of a file -> the sentence about it.
SYNTAX = {
    "glob: *.gz": "a value that begins with * must be in quotes; write glob: '*.gz'.",
    "glob: **/*.gz": "a value that begins with * must be in quotes; write glob: '**/*.gz'.",
    "glob: *gz": "a value that begins with * must be in quotes; write glob: '*gz' (without quotes, *gz stands for",
    "x: {path: in, glob: *.gz}": "a value that begins with * must be in quotes; write glob: '*.gz'.",
    "x: [*.gz]": "a value that begins with * must be in quotes; write '*.gz'.",
    "x: @home": "a value that begins with @ must be in quotes; write x: '@home'.",
    "x: %d": "a value that begins with % must be in quotes; write x: '%d'.",
    "x: `date`": "a value that begins with ` must be in quotes; write x: '`date`'.",
    "x: !include y": "a value that begins with ! must be in quotes; write x: '!include'.",
    "x: {path: ${HOME}/in}": "between braces, a value with ${NAME} must be in quotes",
    "x: {rank}.jsonl": "a value that begins with { must be in quotes; write x: '{rank}.jsonl'.",
    "x: {filename: {rank}.jsonl}": "a value that begins with { must be in quotes; write filename: '{rank}.jsonl'.",
    "x: a: b": "a value with a colon and a space must be in quotes; write x: 'a: b'.",
    "x: 'a": "the quote that opens here is not closed; close it.",
    'x: "a\\d"': "in double quotes a backslash needs another; use single quotes.",
    "x: {a: 1": "a bracket or brace is open that is not closed where it should be; close it, and separate items",
    "x:\n\ty: 1": "a tab cannot indent or separate in YAML; use spaces.",
    "tasks:2\nx: 1": "a space is missing after the colon; write tasks: 2.",
    "tasks = 2\nx: 1": "write tasks: 2, with a colon.",
    "x:\n  - a\n  -b: 1": "a space is missing after the dash; write - b: 1.",
    "x:\n  - a\n   - b: 1": "the line is indented differently from the keys beside it",
    " x: 1": "the line is indented differently from the",
    "x: \u201cin\u201d": "begins with a typographic quote, which is part of the text; write ' or \".",
    "x:\u00a02\ny: 1": "the line holds a space that is not a plain one, as from a web page; type it again.",
    "x: \x1b": "the character U+001B cannot be in a text file; remove it.",
    "---\nname: y": "`---` begins a second document here; write one file for each.",
    "name: y": "the key 'name' is given twice, first in line 1; keep one.",
    "5: x": "a key must be text; put 5 in quotes.",
    "true: x": "a key must be text; put true in quotes.",
    "[a]: x": "a key must be text, not a list or a mapping.",
}


def test_a_glob_on_the_command_line_needs_no_quotes_of_yaml() -> None:
    assert [parse_value(text) for text in ("*.gz", "**/*.gz", "'*.gz'", "*")] == ["*.gz", "**/*.gz", "*.gz", "*"]


@pytest.mark.parametrize("line", SYNTAX)
def test_a_mistake_in_yaml_is_said_as_what_to_write(line: str) -> None:
    with pytest.raises(StaggerError) as raised:
        parse_file(f"{GOOD}{line}\n", "p.yaml")
    assert re.match(r"p\.yaml:[456]: ", str(raised.value))
    assert SYNTAX[line] in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "p"\nrun_dir = "run"\n', "it looks like TOML; write it as YAML: `key: value`."),
        ('[run]\nname = "p"\n', "it looks like TOML"),
        ("from stagger import LocalExecutor\nLocalExecutor()\n", "it looks like a Python script; run it with: python."),
        ("# nothing\n", "p.yaml is empty, and so not a pipeline file"),
        ("- a\n", "it holds a list."),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(text: str, said: str) -> None:
    with pytest.raises(StaggerError) as raised:
        parse_file(text, "p.yaml")
    assert said in str(raised.value)


def test_line_ends_of_other_systems_and_spaces_at_line_ends_are_fine(tmp_path: Path) -> None:
    for end in ("\r\n", "\r", "   \n"):
        (tmp_path / "p.yaml").write_bytes(GOOD.replace("\n", end).encode())
        assert load_file(str(tmp_path / "p.yaml")).name == "x"


@pytest.mark.parametrize("text", ["", "- a\n", "a\n", "3\n", "null\n", "# nothing\n", "--- a\n--- b\n", "&a [*a]\n"])
def test_what_is_no_mapping_is_no_pipeline_file(text: str) -> None:
    with pytest.raises(StaggerError, match=r"^p\.yaml"):
        parse_file(text, "p.yaml")


def bomb(reference: str) -> str:
    """Nine levels of nine aliases: 43 million values."""
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, 9):
        inner = ", ".join(reference.format(key=key, alias=f"*a{level - 1}") for key in range(9))
        lines.append(f"a{level}: &a{level} {{{inner}}}")
    return "\n".join(lines)


@pytest.mark.parametrize("reference", ["k{key}: {alias}", "k{key}: [{alias}, {alias}]", "k{key}: {{<<: {alias}}}"])
def test_aliases_are_bounded_by_what_they_stand_for(reference: str) -> None:
    with pytest.raises(StaggerError, match="more than 100,000 values, counting those that aliases"):
        parse_file(bomb(reference), "p.yaml")


def test_aliases_in_moderation_work() -> None:
    content, _ = parse_file("a: &a {x: 1, y: 010}\nb: *a\nc: {<<: *a, x: 2}\n", "p.yaml")
    assert content == {"a": {"x": 1, "y": 10}, "b": {"x": 1, "y": 10}, "c": {"x": 2, "y": 10}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD.encode("utf-16"), "p.yaml is UTF-16; save it as UTF-8"),
        (b"name: \xff\n", "p.yaml:1: the byte 0xff is not UTF-8"),
        (GOOD.encode() + b"#" * (MAX_CHARACTERS + 1), "has more than 1,048,576 characters"),
        (
            f"{GOOD}storage_options: {{s3: {{key: 1e400}}}}\n".encode(),
            "these options cannot be kept as JSON",
        ),
        (f"{GOOD}retry_seconds: 1e400\n".encode(), "retry_seconds"),
        (f"{GOOD}null: 3\n".encode(), "p.yaml:4: a key must be text; put null in quotes"),
        (b"name: x\nrun_dir: r\nstages: 5\n", "p.yaml:3: stages: expected a list of stages, not the number 5"),
    ],
)
def test_an_odd_file_is_a_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "p.yaml").write_bytes(data)
    with pytest.raises(StaggerError, match=said):
        load_file(str(tmp_path / "p.yaml"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load_file(str(tmp_path / "p.yaml")).name == "x"
