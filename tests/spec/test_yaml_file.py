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
    with pytest.raises(StaggerError):
        parse_value(value)


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
