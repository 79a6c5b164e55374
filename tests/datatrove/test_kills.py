"""A rank that is killed within datatrove's blocks leaves no file of theirs, and its retry writes what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import Cli
from tests.datatrove.blocks import (
    FILTERS,
    MINHASH,
    MINHASH_CONFIG,
    READ,
    STATS,
    TASKS,
    TOKENIZER,
    TOKENS,
    WRITE,
    WRITERS,
    Step,
    removed,
)
from tests.datatrove.both import Places, Stage, contents

#: Kills the process of rank 1, once, when it has had some documents.
KILLING = """
import os, signal
from pathlib import Path


def kill_once(data, rank, world_size, flag):
    for number, document in enumerate(data):
        if rank == 1 and number == 8 and not Path(flag).exists():
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield document
"""

#: Blocks that write in several ways: exclusion writers, writers, statistics; MinHash; tokens.
STAGES = (
    Stage(
        TASKS,
        (
            READ,
            (FILTERS + "GopherQualityFilter", {"min_doc_words": 120, "exclusion_writer": removed()}),
            (WRITERS + "JsonlWriter", {"output_folder": "@out/gz", "output_filename": "${date}/${rank}.jsonl.gz"}),
            (WRITERS + "ParquetWriter", {"output_folder": "@out/parquet", "batch_size": 2}),
            (STATS + "LineStats", {"output_folder": "@out/statistics", "groups_to_compute": ["summary"]}),
            WRITE,
        ),
    ),
    Stage(TASKS, (READ, (MINHASH + "MinhashDedupSignature", {"output_folder": "@out/1", "config": MINHASH_CONFIG}))),
    Stage(TASKS, (READ, (TOKENS + "DocumentTokenizer", {"output_folder": "@out/tokens", "seed": 3, **TOKENIZER}))),
)


def with_kills(stage: Stage, flag: Path) -> Stage:
    """The stage, with a kill before its last step."""
    kill: Step = ("killing:kill_once", {"flag": str(flag)})
    return Stage(stage.tasks, (*stage.steps[:-1], kill, stage.steps[-1]))


def test_kill_9_within_a_block_leaves_nothing_and_the_retry_writes_all(
    places: Places, cli: Cli, environment: dict[str, str]
) -> None:
    expected: dict[str, Any] = places.run_datatrove(STAGES)
    (places.folder / "killing.py").write_text(KILLING)
    killed = tuple(with_kills(stage, places.folder / f"flag-{number}") for number, stage in enumerate(STAGES))
    file = places.pipeline_file(killed, chained=False)
    cli("launch", file, check=1, **environment)
    assert len(list(places.folder.glob("flag-*"))) == len(STAGES)
    left = contents(places.out("yaml"))
    assert left == {name: value for name, value in expected.items() if "00001" not in name}
    cli("retry", places.folder / "yaml-run", check=0, **environment)
    assert contents(places.out("yaml")) == expected
