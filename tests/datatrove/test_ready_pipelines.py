"""The ready pipelines for datatrove's users: clean at their real size, and right on the generated crawl."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stagger.launch.dry_run import dry_run
from stagger.launch.launch import Wishes, launch
from stagger.spec.changes import Changes
from stagger.spec.load import load_file
from tests.conftest import ROOT
from tests.datatrove import fineweb
from tests.datatrove.both import Places

NAMES = sorted(path.stem for path in (ROOT / "pipelines").glob("*.yaml"))

#: The number of input files of a real launch.
MANY = 8000


@pytest.fixture
def variables(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the headers of the ready pipelines tell people to export."""
    given = {"INPUT": "crawl", "OUTPUT": places.out("yaml"), "RUN_DIR": places.folder / "run", "DUMP": "D1"}
    given |= {"TOKENIZER": places.materials / "tokenizer.json", "MODEL": places.folder / "model"}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_at_the_real_size_is_clean(
    name: str, places: Places, variables: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("crawl").mkdir()
    for source in ("crawl/00000.warc.gz", "documents/00000.jsonl"):
        suffix = source.partition(".")[2]
        for number in range(MANY):
            os.link(places.materials / source, f"crawl/{number:05d}.{suffix}")
    local = name in ("quickstart", "swarm_rehearsal")
    document = dry_run(load_file(name, Changes(() if local else ("executor.partition=cpu",))), Wishes())
    assert document["stages"]
    if name == "fineweb":
        assert [stage["tasks"] for stage in document["stages"]] == [MANY, 1000, 700, 1, 1000]
    assert "have no shard" not in capsys.readouterr().err


def test_fineweb_gives_datatroves_documents_and_reasons(places: Places, variables: None) -> None:
    os.environ["INPUT"] = str(places.materials / "crawl")
    launched = launch(load_file("fineweb", Changes(fineweb.SMALL, "local")), Wishes())
    launched.raise_if_failed()
    theirs, ours = places.out("datatrove"), places.out("yaml")
    fineweb.run_datatrove(places.materials / "crawl", theirs)
    expected = fineweb.documents(theirs)
    assert fineweb.documents(ours) == expected
    assert all(expected.values())
    assert fineweb.reasons_of_stagger(ours / "run") == fineweb.reasons_of_datatrove(theirs)
