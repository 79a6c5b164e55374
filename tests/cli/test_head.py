"""`stagger head` shows documents of a run, of a path, of what was removed, and behind a step, and writes nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather

from stagger import Document, Filter, LocalExecutor, ReadJsonl, Run, StaggerError, WithRemoved, WriteJsonl
from stagger.cli.head import documents, show
from tests.conftest import Bucket, Cli, jsonl


def shown(what: Any, count: int = 3, **options: Any) -> list[str]:
    given = {"step": None, "stage": None, "options": None, "removed": False, "text_key": None, **options}
    return [document.id for document in itertools.islice(documents(str(what), **given), count)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that keeps every third document, in two ranks, and what it removes."""
    folder = tmp_path_factory.mktemp("head")
    for shard in range(2):
        lines = [{"text": f"text {n}", "id": f"{shard}-{n}"} for n in range(30)]
        (folder / f"in-{shard}.jsonl").write_bytes(jsonl(lines))
    keep = Filter(lambda document: int(document.id[2:]) % 3 == 0 or "no third")
    writer = WriteJsonl(str(folder / "out"), text_key="content")
    steps: list[Any] = [ReadJsonl(str(folder), glob="in-*"), WithRemoved(keep, folder / "removed"), writer]
    return LocalExecutor(steps, run_dir=folder / "run", tasks=2, workers=1).run()


def test_documents_of_a_run(run: Run) -> None:
    assert shown(run.run_dir) == ["0-0", "0-3", "0-6"]
    assert shown(run.run_dir, 100)[-1] == "1-27"
    assert shown(run.run_dir, removed=True) == ["0-1", "0-2", "0-4"]
    assert shown(run.run_dir, step=1) == ["0-0", "0-1", "0-2"]
    assert shown(run.run_dir, step=3) == ["0-0", "0-3", "0-6"]
    assert shown(run.run_dir, 100, step=2, removed=True)[-1] == "0-29"  # Rank 0 alone.
    assert len(run.outputs()) == 2
    assert [document.id for document in run.head(4)] == ["0-0", "0-3", "0-6", "0-9"]
    assert [document.metadata["filter_reason"] for document in run.head(1, removed=True)] == ["no third"]


def test_documents_of_a_path(run: Run) -> None:
    folder = Path(run.run_dir).parent
    assert shown(folder / "removed") == ["0-1", "0-2", "0-4"]
    table = pyarrow.table({"body": ["a", "b"], "id": ["x", "y"]})
    feather.write_feather(table, str(folder / "some.feather"))
    assert shown(folder / "some.feather", text_key="body") == ["x", "y"]
    assert shown(folder / "out" / "00001.jsonl.zst", text_key="content") == ["1-0", "1-3", "1-6"]


@pytest.mark.parametrize(
    ("what", "options", "sentence"),
    [
        ("nowhere", {}, "nowhere does not exist, or is empty"),
        ("in-0.jsonl", {"step": 2}, "--step belongs to a run"),
        ("in-0.jsonl", {"removed": True}, "--removed belongs to a run"),
        ("run", {"step": 4}, "has 3 steps; give 1 to 3"),
        ("run", {"step": 1, "removed": True}, "the first step reads, and removes nothing"),
        ("run", {"stage": "other"}, "There is no stage 'other'"),
        ("run/run.json.lock", {}, "does not exist"),
        ("out", {}, "there is no key 'text'"),
    ],
)
def test_mistakes_are_named(run: Run, what: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StaggerError, match=sentence):
        shown(Path(run.run_dir).parent / what, **options)


def test_a_pipeline_file_needs_no_run_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    content = {
        "name": "x",
        "run_dir": f"{tmp_path}/run",
        "pipeline": [
            {"read_jsonl": {"path": str(Path(run.run_dir).parent), "glob": "in-*"}},
            {"datatrove.pipeline.filters:RegexFilter": {"regex_exp": "1"}},
            {"datatrove.pipeline.writers:JsonlWriter": {"output_folder": f"{tmp_path}/theirs"}},
            {"datatrove.pipeline.stats:DocStats": {"output_folder": f"{tmp_path}/stats"}},
            {"write_jsonl": {"path": f"{tmp_path}/out"}},
        ],
    }
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(content))
    assert shown(file, step=3) == ["0-0", "0-2", "0-3"]
    assert shown(file, step=2, removed=True) == ["0-1", "0-10", "0-11"]
    with pytest.raises(StaggerError, match=r"DocStats.*writes files"):
        shown(file, step=5)
    assert list(tmp_path.iterdir()) == [file]


def test_a_terminal_obeys_no_document(capsys: pytest.CaptureFixture[str], tmp_path: Path, cli: Cli) -> None:
    show(1, Document("a\x1b[2J\nb" + "c" * 2000, "x\x1b]0;t\x07", [], {"k\x9b": {"deep": ["\u202e"]}}), full=False)
    said = capsys.readouterr().out
    assert said.startswith("1  x\\x1b]0;t\\x07\n   k\\x9b: ")
    assert "\x1b" not in said
    assert "   | a\\x1b[2J\n   | bccc" in said
    assert "... (2,007 characters)" in said
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "\x1b[2J", "id": "1", "n": 2}]))
    assert cli("head", tmp_path, "--json", check=0).json == [{"text": "\x1b[2J", "id": "1", "metadata": {"n": 2}}]
    assert "give a run, a pipeline file, or documents" in cli("head", tmp_path / "b", check=2).err


def test_documents_of_a_bucket(loaded: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in loaded.env.items():
        monkeypatch.setenv(name, value)
    assert shown(f"{loaded.url}/input") == ["doc-0", "doc-1", "doc-2"]
    assert shown(f"{loaded.url}/input/shard-11.jsonl.zst", 1) == ["doc-550"]
    with pytest.raises(StaggerError, match="does not exist, or is empty"):
        shown(f"{loaded.url}/nothing")
    keep = Filter(lambda document: int(document.id[4:]) % 2 == 0 or "odd")
    steps: list[Any] = [
        ReadJsonl(f"{loaded.url}/input"),
        WithRemoved(keep, f"{loaded.url}/removed"),
        WriteJsonl(f"{loaded.url}/out"),
    ]
    executor = LocalExecutor(steps, run_dir=f"{loaded.url}/run", tasks=2, workers=1)
    monkeypatch.chdir(tmp_path)
    assert executor.run(rehearse=1).head(2)[1].id == "doc-2"
    assert loaded.files.ls(loaded.name) == [f"{loaded.name}/input"]
    run = executor.run()
    assert shown(run.run_dir, removed=True) == ["doc-1", "doc-3", "doc-5"]
