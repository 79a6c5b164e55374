"""No name, error or printed text reaches a terminal raw."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stagger
from stagger.cli.answers import print_json
from stagger.cli.rank_logs import Shown
from stagger.errors import BadInput, StaggerError, one_line
from tests.conftest import Cli, PipelineFiles

#: What a name may hold -> how it is shown.
STEERING = {
    "line end": ("\nINJECTED", r"\nINJECTED"),
    "carriage return": ("\rINJECTED", r"\rINJECTED"),
    "next line": ("\x85INJECTED", r"\x85INJECTED"),
    "line separator": ("\u2028INJECTED", r"\u2028INJECTED"),
    "title": ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    "clear": ("\x1b[2J", r"\x1b[2J"),
    "clipboard": ("\x1b]52;c;YQ==\x07", r"\x1b]52;c;YQ==\x07"),
    "one-byte control": ("\x9b2J", r"\x9b2J"),
    "backspace": ("\x08\x08", r"\x08\x08"),
    "reversed": ("\u202egpj", r"\u202egpj"),
    "zero width": ("\u200b\ufeff", r"\u200b\ufeff"),
}

#: Characters that no output may hold.
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202e\ufeff]|^INJECTED", re.MULTILINE)


@pytest.mark.parametrize(("raw", "shown"), STEERING.values(), ids=STEERING)
def test_an_error_has_one_line_for_each_sentence(raw: str, shown: str) -> None:
    assert one_line(f"a{raw}b") == f"a{shown}b"
    assert str(StaggerError(f"{raw} is bad.", "So is this.")) == f"{shown} is bad.\nSo is this."
    assert str(BadInput(raw)) == shown


def test_text_of_any_language_stays_as_it_is() -> None:
    text = "Grüße, 世界\u3000नमस्ते 😀 \xa0 C:\\names\\x1b"
    assert one_line(text) == text


def test_names_of_inputs_are_shown_on_one_line(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    source = tmp_path / "odd"
    source.mkdir()
    for raw, _ in STEERING.values():
        (source / f"a{raw}.jsonl").write_text('{"text": broken\n')
    file = pipeline_file(source=str(source), tasks=len(STEERING), steps=("my_steps:prints",))
    run = tmp_path / "run"
    answers = [cli("launch", file, check=1), cli("status", run), cli("logs", run, "--failed"), cli("logs", run)]
    answers += [cli("logs", run, "--rank", rank) for rank in range(len(STEERING))]
    for ran in answers:
        assert not RAW.search(ran.out + ran.err), ran.out + ran.err
    said = answers[2].out
    assert all(f"/a{shown}.jsonl" in said for _, shown in STEERING.values())
    for log in sorted((run / "logs").rglob("*.log")):
        assert not RAW.search(log.read_text().replace("\x1b[31mprinted\x1b[0m", "")), log.read_text()


def test_what_steps_print_is_shown_without_its_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    for piece in (b"10 %\r", b"\n20 %\r30 %\n\x1b[31mred\x1b[0m\t\xff \xe4\xb8", b"\x96\r\n"):
        shown.write(piece)
    assert capsys.readouterr().out == "10 %\n20 %\n30 %\n\\x1b[31mred\\x1b[0m\t\\xff 世\n".replace("世", "\u4e16")


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"".join(raw for raw, _ in STEERING.values()): ["世界", {"a": 1}]}
    print_json(document)
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", out)
    assert json.loads(out) == document


def test_one_place_prints_and_one_makes_the_logger() -> None:
    package = Path(stagger.__file__).parent
    trees = {str(path.relative_to(package)): ast.parse(path.read_text()) for path in package.rglob("*.py")}
    printing = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    # Two views that redraw themselves print the sequence that clears a terminal. A bundle is loaded before the rest.
    bundle = {"bundle/boot.py", "bundle/loader.py"}
    others = {"terminal.py", "task/attempt_log.py", "cli/main.py", "cli/show.py", "cli/block_status.py"}
    assert printing == bundle | others
    logging = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "loguru"
    }
    assert logging == {"cli/message_log.py", "terminal.py"}


def test_messages_stay_as_they_are_when_a_users_module_changes_the_logging(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """As datatrove does when it is imported."""
    (tmp_path / "loud.py").write_text(
        "import sys, loguru\n"
        "loguru.logger.remove()\n"
        "loguru.logger.add(sys.stderr)\n"
        "def keep(data, rank, world_size):\n"
        "    yield from data\n"
    )
    file = pipeline_file(steps=({"loud:keep": {}},))
    for command in (["launch", str(file)], ["retry", str(tmp_path / "run"), "--again"]):
        said = cli(*command, check=0).err
        assert said.splitlines()[-1].startswith("run: 4 of 4 ranks in")
        assert " | INFO " not in said


def test_what_a_users_module_logs_on_import_looks_as_the_commands_messages(
    pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """In a process of its own: no earlier message has imported loguru."""
    (tmp_path / "telling.py").write_text(
        "from loguru import logger\n"
        "logger.debug('too much')\n"
        "logger.info('imported')\n"
        "def keep(data, rank, world_size):\n"
        "    yield from data\n"
    )
    launch = [sys.executable, "-m", "stagger", "launch", str(pipeline_file(steps=({"telling:keep": {}},)))]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *_, last = done.stderr.splitlines()
    assert first == "imported"
    assert last.startswith("run: 4 of 4 ranks in")
    assert "too much" not in done.stderr
