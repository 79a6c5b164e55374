"""Mistakes on the command line: one or two lines, exit status 2, and what to type instead. No process is started."""

from __future__ import annotations

import gc
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagger.cli import main
from tests.conftest import Cli

PIPELINE = """
name: p
run_dir: run
tasks: 2
pipeline:
  - read_jsonl: {path: in}
  - write_jsonl: {path: out}
"""

TWO = """
name: two
run_dir: runs/two
stages:
  - {name: clean, pipeline: [{read_jsonl: {path: in}}, {write_jsonl: {path: two-a}}]}
  - {name: count, depends: [clean], pipeline: [{read_jsonl: {path: two-a}}, {write_jsonl: {path: two-b}}]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after a day of work: pipeline files, runs, outputs, and other files."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text('{"text": "hello"}\n')
    (folder / "p.yaml").write_text(PIPELINE)
    (folder / "two.yaml").write_text(TWO)
    (folder / "empty").mkdir()
    (folder / "notes").write_text("x")
    cli = Cli(folder)
    cli("launch", "p.yaml", check=0)
    cli("launch", "two.yaml", check=0)
    return folder


@pytest.fixture
def typed(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    monkeypatch.chdir(made)
    monkeypatch.setattr(main, "set_up_logging", lambda: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    yield Typed(monkeypatch, capsys)
    gc.enable()


class Typed:
    """Runs a command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, line: str) -> tuple[int, str, str]:
        """The exit status, standard output and standard error of a line as it is typed."""
        self.monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = self.capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stagger lunch p.yaml", "There is no command 'lunch'; did you mean 'launch'?"),
        ("stagger help", "There is no command 'help'; use: stagger --help"),
        ("stagger submit p.yaml", "There is no command 'submit'; use: stagger launch"),
        ("stagger p.yaml", "'p.yaml' is no command; did you mean: stagger launch p.yaml"),
        ("stagger run", "'run' is no command; did you mean: stagger status run"),
        ("stagger blocks stat run", "There is no command 'stat'; did you mean 'status'?"),
        ("stagger --versoin", "stagger has no option --versoin; did you mean --version?"),
        (
            "stagger --dry-run launch p.yaml",
            "no option --dry-run: that is an option of stagger launch; write it after",
        ),
        ("stagger launch", "launch needs a pipeline file; write for example: stagger launch pipeline.yaml"),
        ("stagger status", "status needs the run directory of a run; write for example: stagger status runs/my_run"),
        ("stagger launch p.yaml two.yaml", "launch takes one FILE; leave out 'two.yaml'."),
        ("stagger schema x", "schema takes no arguments; leave out 'x'."),
        ("stagger launch p.yml", "There is no file p.yml; did you mean 'p.yaml'?"),
        ("stagger launch p", "There is no file p; did you mean 'p.yaml'?"),
        ("stagger launch far-away", "There is no file far-away; give the path of a pipeline file, or the name of"),
        ("stagger launch empty", "empty is no pipeline file: it is a folder; name a file."),
        (
            "stagger launch run",
            "it is a run directory; continue its run with: stagger retry run.",
        ),
        (
            "stagger launch run/run.json",
            "is the record of a run, not a pipeline file; continue the run with:",
        ),
        (
            "stagger launch notes",
            "notes is not a pipeline file: it must hold keys such as name, run_dir and",
        ),
        ("stagger plan run", "run is no pipeline file: it is a run directory"),
        ("stagger launch p.yaml --task 3", "launch has no option --task; did you mean --tasks?"),
        ("stagger launch p.yaml --dryrun", "launch has no option --dryrun; did you mean --dry-run?"),
        ("stagger launch p.yaml --run_dir x", "launch has no option --run_dir; did you mean --run-dir?"),
        (
            "stagger launch p.yaml --rank 3",
            "launch has no option --rank: that is an option of stagger retry,",
        ),
        ("stagger launch p.yaml -q", "launch has no option -q; see stagger launch --help."),
        (
            "stagger launch p.yaml --tasks many",
            "--tasks many: give a number of ranks from 1 to 10,000,000, or auto for one a shard.",
        ),
        (
            "stagger launch p.yaml --tasks=0",
            "--tasks 0: give a number of ranks from 1 to 10,000,000, or auto for one a shard.",
        ),
        ("stagger launch p.yaml --tasks", "--tasks needs a value after it."),
        ("stagger launch p.yaml --limit 0", "--limit: expected a whole number of at least 1, not '0'."),
        ("stagger launch p.yaml --executor slrum", "There is no executor 'slrum'; did you mean 'slurm'?"),
        ("stagger launch p.yaml --set tasks", "--set tasks: write it as key=value, e.g. --set executor.workers=100."),
        ("stagger launch p.yaml --profile nope", "--profile: there is no profile 'nope'"),
        ("stagger plan p.yaml --limit 3500", "plan has no option --limit; did you mean --backend-limit?"),
        (
            "stagger plan --tasks 5 --backend-limit x",
            "--backend-limit: expected a number from 0.1 to 1,000,000,000,",
        ),
        ("stagger plan two.yaml --stage cont", "There is no stage 'cont'; did you mean 'count'?"),
        ("stagger status nope", "There is no run in {}/nope: it does not exist; give the run_dir of a pipeline file."),
        ("stagger status nope.yaml", "There is no file nope.yaml; give the path of a pipeline file, or the name of"),
        ("stagger status runn", "There is no run in {}/runn: it does not exist; did you mean run?"),
        ("stagger status two", "There is no run in {}/two: it does not exist; did you mean runs/two?"),
        (
            "stagger status notes",
            "There is no run in {}/notes: it has no run.json; give the run_dir",
        ),
        ("stagger status empty", "There is no run in {}/empty: it has no run.json; give the run_dir"),
        ("stagger status out", "There is no run in {}/out: it is an output folder of the run run; give that path."),
        ("stagger logs out/00000.jsonl.zst", "it lies in an output folder of the run run; give that path."),
        ("stagger retry run/logs", "There is no run in {}/run/logs: it is a part of the run run; give that path."),
        ("stagger cancel runs/two/clean", "it is a part of the run runs/two; give that path."),
        ("stagger status runs", "There is no run in {}/runs: it holds the run runs/two; give that path."),
        ("stagger status run --wach", "status has no option --wach; did you mean --watch?"),
        ("stagger status run --watch=3", "--watch takes no value; write --watch alone."),
        ("stagger status run --again", "status has no option --again: that is an option of stagger retry"),
        ("stagger status run --storage-options {", "--storage-options '{': a bracket or brace is open"),
        ("stagger logs run --rank 99", "There is no rank 99: the ranks of p are 0 to 1."),
        ("stagger logs run --rank x", "--rank: expected a whole number of at least 0, not 'x'."),
        ("stagger logs run --attempt 9", "--attempt needs a rank; say which with --rank."),
        ("stagger logs run --follow", "--follow needs a rank; say which with --rank."),
        ("stagger logs runs/two --rank 0", "The run has several stages; choose one with --stage: clean, count."),
        ("stagger logs runs/two --stage coutn", "There is no stage 'coutn'; did you mean 'count'?"),
        ("stagger retry run --rank 3-", "--rank '3-': write ranks like 3 or 3,17,40-52."),
        ("stagger retry run --rank 5-3", "--rank '5-3': write ranks like 3 or 3,17,40-52."),
        ("stagger retry run --rank ''", "--rank '': write ranks like 3 or 3,17,40-52."),
        ("stagger retry run --rank 0", "Rank 0 of p is done; to repeat it, add --again."),
        ("stagger retry run --set tasks=3", "--set tasks: a retry cannot change tasks, only executor"),
        ("stagger retry run --set executor.workrs=3", "executor.workrs: unknown key; did you mean 'workers'?"),
        (
            "stagger retry run --limit 3",
            "retry has no option --limit: that is an option of stagger launch;",
        ),
        ("stagger cancel run --rank 99", "There is no rank 99: the ranks of p are 0 to 1."),
        ("stagger cancel runs/two --stage c", "There is no stage 'c'; choose from clean, count."),
        ("stagger doctor --patition a", "doctor has no option --patition; did you mean --partition?"),
        ("stagger blocks simulate --servers 0", "--servers: expected a whole number from 1 to 1,000, not '0'."),
    ],
)
def test_each_mistake_is_answered_with_what_to_type(typed: Typed, made: Path, line: str, said: str) -> None:
    status, out, err = typed(line)
    assert said.replace("{}", str(made)) in err
    assert (status, out) == (2, "")
    assert all(one.startswith("stagger: ") for one in err.splitlines())
    assert err.count("\n") <= 2
    assert not re.search(r"Traceback|Input should|Invalid value|Possible options|<class", err)


@pytest.mark.parametrize("run", ["run", "run/", "p.yaml", "run/run.json"])
def test_a_run_is_found_by_its_folder_its_record_or_its_pipeline_file(typed: Typed, made: Path, run: str) -> None:
    status, out, _ = typed(f"stagger status {run}")
    assert status == 0
    assert out.startswith(f"{made}/run\n  p  2 ranks: 2 done in ")


def test_a_pipeline_file_names_its_run_with_variables_and_without_a_run_says_so(
    typed: Typed, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made / "v.yaml").write_text(PIPELINE.replace("run_dir: run", "run_dir: ${WHERE}/run"))
    monkeypatch.setenv("WHERE", str(made))
    assert typed("stagger status v.yaml")[0] == 0
    monkeypatch.setenv("WHERE", "elsewhere")
    assert "There is no run in" in typed("stagger status v.yaml")[2]
    monkeypatch.delenv("WHERE")
    assert "WHERE is not set" in typed("stagger status v.yaml")[2]
    (made / "w.yaml").write_text("name: p\n")
    assert (
        "w.yaml: run_dir: there is no run directory; give that of the run itself." in typed("stagger retry w.yaml")[2]
    )


def test_no_arguments_at_all_print_the_help_alone(typed: Typed) -> None:
    for line in ("stagger", "stagger blocks"):
        status, out, err = typed(line)
        assert "Usage:" in out
        assert (status, err) == (2, "")


def test_a_damaged_record_beside_does_not_hide_the_answer(typed: Typed, made: Path) -> None:
    shutil.copytree(made / "run", made / "broken", ignore=shutil.ignore_patterns("*.lock"))
    (made / "broken" / "run.json").write_text("{")
    try:
        assert "it is an output folder of the run run" in typed("stagger status out")[2]
    finally:
        shutil.rmtree(made / "broken")
