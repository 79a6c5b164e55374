"""The index of completion records on S3: a next look makes few requests, where the first makes one for each rank."""

from __future__ import annotations

import pytest

from stagger.rundir import completion_index
from stagger.rundir.completion_index import read_table
from stagger.rundir.stage_folder import StageFolder, encode
from stagger.storage.storage import Storage
from tests.kit.records import completion
from tests.kit.s3_server import S3Server
from tests.s3.conftest import ENGINES

RANKS = 20


@pytest.mark.parametrize("engine", ENGINES)
def test_the_next_look_makes_one_request_for_all_records_that_are_as_before(
    s3: S3Server, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_index, "INDEXED", 1)
    run, storage = f"s3://out/index-{engine}", Storage({"s3": {"engine": engine}})

    def look() -> tuple[list[int], int]:
        """What a fresh process sees: the records read by each rank, and the GET requests that it makes."""
        folder = StageFolder(Storage({"s3": {"engine": engine}}), run)
        done = folder.done()
        s3.reset()
        table = read_table(folder, done, keep=False)
        return list(table.records_in), s3.stats()["requests"].get("GetObject", 0)

    for rank in range(RANKS):
        storage.write(f"{run}/completions/{rank:05d}.json", encode(completion(rank, records_in=rank + 10)))
    counts = list(range(10, 10 + RANKS))
    assert look() == (counts, RANKS + 1)  # The index is looked for first.
    assert look() == (counts, 1)
    counts[3] = 99  # As long as before, and perhaps within the same second.
    storage.write(f"{run}/completions/00003.json", encode(completion(3, records_in=99)))
    assert look() == (counts, 2)
