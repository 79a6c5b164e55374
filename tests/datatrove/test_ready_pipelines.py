"""The ready pipelines for datatrove's users: clean at their real size, and right on the generated crawl."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from tokenizers import Tokenizer

from stagger.launch.dry_run import dry_run
from stagger.launch.launch import Wishes, launch
from stagger.models import settings
from stagger.spec.changes import Changes
from stagger.spec.load import load_file
from tests.conftest import ROOT, read_jsonl
from tests.datatrove import fineweb
from tests.datatrove.both import Places
from tests.datatrove.materials import FILES

NAMES = sorted(path.stem for path in (ROOT / "pipelines").glob("*.yaml"))

#: The number of input files of a real launch.
MANY = 8000


@pytest.fixture
def variables(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the headers of the ready pipelines tell people to export."""
    given: dict[str, Any] = {
        "INPUT": "crawl",
        "OUTPUT": places.out("yaml"),
        "RUN_DIR": places.folder / "run",
        "DUMP": "D1",
    }
    given |= {"TOKENIZER": places.materials / "tokenizer.json", "MODEL": places.folder / "model"}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    given["MODEL"].mkdir()
    (given["MODEL"] / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 8192}')
    shutil.copy(given["TOKENIZER"], given["MODEL"])
    monkeypatch.setattr(settings, "PACKAGES", ("no_torch_here",))  # The weights are not there.


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_at_the_real_size_is_clean(
    name: str, places: Places, variables: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("crawl").mkdir()
    for source in ("crawl/00000.warc.gz", "documents/00000.jsonl"):
        suffix = source.partition(".")[2]
        shutil.copy(places.materials / source, f"crawl/{0:05d}.{suffix}")  # A file has 65,000 links at most.
        for number in range(1, MANY):
            os.link(f"crawl/{0:05d}.{suffix}", f"crawl/{number:05d}.{suffix}")
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


def ids_in(folder: Path) -> list[str]:
    return sorted(each["id"] for path in sorted(folder.iterdir()) for each in read_jsonl(path))


def test_minhash_keeps_one_document_of_each_group_of_near_duplicates(places: Places, variables: None) -> None:
    os.environ["INPUT"] = str(places.materials / "documents")
    small = ("stages.signatures.tasks=2", "stages.buckets.tasks=14", "stages.deduplicate.tasks=2")
    launch(load_file("minhash", Changes(small, "local")), Wishes()).raise_if_failed()
    kept, removed = (ids_in(places.out("yaml") / name) for name in ("deduplicated", "removed"))
    assert sorted([*kept, *removed]) == ids_in(places.materials / "documents")
    assert 0 < len(removed) < len(kept)


def test_tokenize_merges_the_tokens_of_all_documents(places: Places, variables: None) -> None:
    os.environ["INPUT"] = str(places.materials / "documents")
    small = (
        "stages.tokenize.tasks=2",
        f"stages.tokenize.pipeline.DocumentTokenizer.local_working_dir={places.folder}/t",
    )
    launch(load_file("tokenize", Changes(small, "local")), Wishes()).raise_if_failed()
    tokenizer = Tokenizer.from_file(str(places.materials / "tokenizer.json"))
    texts = [each["text"] for path in (places.materials / "documents").iterdir() for each in read_jsonl(path)]
    tokens = sum(len(tokenizer.encode(text).ids) + 1 for text in texts)  # With the mark of a document's end.
    merged = list((places.out("yaml") / "merged").glob("*.ds"))
    assert sum(path.stat().st_size for path in merged) == 2 * tokens


def test_warc_to_parquet_writes_a_file_for_each_input_file(places: Places, variables: None) -> None:
    os.environ["INPUT"] = str(places.materials / "crawl")
    launch(load_file("warc_to_parquet", Changes((), "local", tasks=2)), Wishes()).raise_if_failed()
    written = {path.name: parquet.read_table(path) for path in places.out("yaml").glob("*.parquet")}
    assert sorted(written) == [f"{number:05d}.parquet" for number in range(FILES)]
    urls = [url for table in written.values() for url in table["url"].to_pylist()]
    extracted = {
        each["metadata"]["url"] for path in (places.materials / "documents").iterdir() for each in read_jsonl(path)
    }
    assert len(set(urls)) == len(urls)
    assert extracted <= set(urls)
