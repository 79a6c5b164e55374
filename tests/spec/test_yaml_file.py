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
    "!!timestamp 2024-99-99": "could not determine a constructor",
    "!!binary aGVsbG8=": "could not determine a constructor",
    "!!set {a, b}": "could not determine a constructor",
    "!!omap [a: 1]": "could not determine a constructor",
    "!!python/object:os.system x": "could not determine a constructor",
    "!!str [a]": "expected a scalar node",
    "!!map [a]": "expected a mapping node",
    '"\\0"': "holds a NUL",
    '"\\ud800"': "half a character",
    "{? [1, 2] : 3}": "found unhashable key",
    "{a: 1, a: 2}": "the key 'a' is given twice",
    "&a [*a]": "more than 100 levels of nesting, or an alias",
    "&a {k: *a}": "more than 100 levels of nesting, or an alias",
    "{<<: 3}": "expected a mapping or list of mappings",
    "[" * 3000 + "]" * 3000: "more than 100 levels of nesting",
    "*nothing": "found undefined alias",
    "\t- a": "found character '\\t'",
    "'\x00'": "special characters are not allowed",
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
        (GOOD.encode("utf-16"), "cannot be read"),
        (b"name: \xff\n", "cannot be read"),
        (GOOD.encode() + b"#" * (MAX_CHARACTERS + 1), "has more than 1,048,576 characters"),
        (
            f"{GOOD}storage_options: {{s3: {{key: 1e400}}}}\n".encode(),
            "these options cannot be kept as JSON",
        ),
        (f"{GOOD}retry_seconds: 1e400\n".encode(), "retry_seconds"),
        (f"{GOOD}null: 3\n".encode(), "keys should be strings"),
        (b"name: x\nrun_dir: r\nstages: 5\n", "must be a list of stages"),
    ],
)
def test_an_odd_file_is_a_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "p.yaml").write_bytes(data)
    with pytest.raises(StaggerError, match=said):
        load_file(str(tmp_path / "p.yaml"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load_file(str(tmp_path / "p.yaml")).name == "x"
