"""The ready pipelines: `stagger launch --list` shows them, and `stagger init` copies one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagger.errors import StaggerError
from stagger.spec.ready import copy_ready, ready_pipelines
from tests.conftest import ROOT, Cli

NAMES = sorted(path.stem for path in (ROOT / "pipelines").glob("*.yaml"))


def test_list_shows_each_with_one_sentence(cli: Cli) -> None:
    shown = cli("launch", "--list", check=0).out
    for ready in ready_pipelines():
        assert f"{ready.name} " in shown
        assert ready.sentence in shown
        assert ready.sentence[0].isupper()
        assert ready.sentence.endswith(".")
        assert len(ready.sentence) <= 120
    assert [one["name"] for one in cli("launch", "--list", "--json", check=0).json] == NAMES
    assert [one["name"] for one in cli("blocks", "launch", "--list", "--json", check=0).json] == ["swarm_rehearsal"]


def test_init_copies_a_pipeline_that_runs_where_it_lies(cli: Cli, tmp_path: Path) -> None:
    made = cli("init", "quickstart", "mine", check=0)
    assert made.out.splitlines()[:2] == ["mine/quickstart.yaml", "mine/keep_long.py"]
    for name in ("quickstart.yaml", "keep_long.py"):
        assert (tmp_path / "mine" / name).read_bytes() == (ROOT / "pipelines" / name).read_bytes()
    cli("launch", "mine/quickstart.yaml", "--dry-run", check=0)


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "keep_long.py").write_text("mine")
    with pytest.raises(StaggerError, match=r"keep_long\.py exists, and stagger init overwrites nothing"):
        copy_ready("quickstart", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep_long.py"]
    assert (tmp_path / "keep_long.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "folder", "sentence"),
    [
        ("quikstart", "new", "There is no ready pipeline 'quikstart'; did you mean 'quickstart'"),
        ("quickstart", "file", "file is no folder; give another one: stagger init quickstart FOLDER"),
        ("quickstart", "/proc/new", "/proc/new cannot take the copy"),
    ],
)
def test_mistakes(name: str, folder: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StaggerError, match=sentence):
        copy_ready(name, tmp_path / folder)
