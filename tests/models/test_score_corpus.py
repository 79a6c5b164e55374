"""The ready pipeline score_corpus scores a corpus on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import parquet

from stagger.launch.launch import Wishes, launch
from stagger.spec.changes import Changes
from stagger.spec.load import load_file
from tests.conftest import jsonl
from tests.kit.in_process import in_process
from tests.models.conftest import Models
from tests.models.corpus import documents


def test_score_corpus(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("INPUT", tmp_path / "in"), ("OUTPUT", tmp_path / "out"), ("MODEL", models("llama"))):
        monkeypatch.setenv(name, str(value))
    for shard in ("a", "b"):
        (tmp_path / "in" / shard).mkdir(parents=True)
        lines = [{"text": one.text, "id": one.id} for one in documents(5)]
        (tmp_path / "in" / shard / "part.jsonl").write_bytes(jsonl(lines))
    changes = Changes(("tasks=2", "pipeline.score_blocks.max_length=1024"), "local")
    with in_process():
        launch(load_file("score_corpus", changes), Wishes()).raise_if_failed()
    one, other = (parquet.read_table(tmp_path / "out" / "scores" / shard / "part.parquet") for shard in ("a", "b"))
    assert one.num_rows == 5
    assert one.equals(other)
    assert one["scored_by"][0].as_py().split()[1] == "bfloat16"
