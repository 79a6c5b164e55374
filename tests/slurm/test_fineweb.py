"""FineWeb on the cluster: killed, and stopped at a time limit, it ends with datatrove's documents."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagger.spec.ready import copy_ready
from tests.conftest import Cli, until
from tests.datatrove import fineweb
from tests.kit.crawl import in_environment, models, write_crawl
from tests.kit.open_files import process_with
from tests.kit.runs import launches
from tests.slurm.conftest import slurm

#: The executor of all stages; 14 buckets share a job.
EXECUTOR = "{type: slurm, partition: cpu, time: 10, mem_per_cpu_gb: 1"
ON_THE_CLUSTER = (
    *fineweb.SMALL,
    f"executor={EXECUTOR}}}",
    f"stages.buckets.executor={EXECUTOR}, ranks_per_job: {fineweb.BUCKETS}}}",
    f"stages.cluster.executor={EXECUTOR}}}",
    "randomize_start_duration=0",
)

#: A step that takes a while for each document but the first, and says so by a file, until there is a flag.
SLOW = """
import time
from pathlib import Path


def linger(data, rank, world_size, flag):
    for number, document in enumerate(data):
        if number >= 3 and not Path(flag).exists():
            Path(f"{flag}-{rank}").touch()
            time.sleep(0.3)
        yield document
"""


@contextmanager
def watched(folder: Path, besides: str) -> Iterator[dict[str, set[int]]]:
    """Look at the visible files below a folder all the time: path -> all sizes that were seen."""
    seen: dict[str, set[int]] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for path in folder.rglob("*"):
                name = str(path.relative_to(folder))
                if any(part.startswith(".") for part in path.parts) or name.startswith(besides) or not path.is_file():
                    continue
                try:
                    seen.setdefault(name, set()).add(path.stat().st_size)
                except FileNotFoundError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    found = models(tmp_path / "models")
    with in_environment(found):
        yield found


def held_pipeline(folder: Path, flag: Path) -> Path:
    """A copy of the ready pipeline whose base stage lingers before its last step until `flag` exists."""
    file = copy_ready("fineweb", folder)[0]
    (folder / "slow.py").write_text(SLOW)
    linger = f"- slow:linger: {{flag: {flag}}}\n      "
    text = file.read_text()
    before, write, after = text.partition('- write_jsonl: {path: "${OUTPUT}/base"}')
    file.write_text(before + linger + write + after)
    return file


def test_a_killed_and_a_stopped_rank_change_no_document_and_no_file_is_ever_partial(
    slurm_cli: Cli, tmp_path: Path, environment: dict[str, str]
) -> None:
    crawl, out, flag = tmp_path / "crawl", tmp_path / "out", tmp_path / "flag"
    write_crawl(crawl, 60, 4)
    file = held_pipeline(tmp_path / "mine", flag)
    given = {"INPUT": str(crawl), "OUTPUT": str(out), "DUMP": "D1", **environment}
    sets = [word for change in ON_THE_CLUSTER for word in ("--set", change)]
    with watched(out, "run/") as seen:
        launched = slurm_cli.start("launch", file, "--wait", *sets, **given)
        for rank in range(fineweb.TASKS):
            until(Path(f"{flag}-{rank}").exists, f"rank {rank} to be at work")
        array = launches(out / "run" / "base")[0]["arrays"][0]["job_id"]
        log = str(out / "run" / "base" / "logs" / "00000")
        os.kill(process_with(lambda path: path.startswith(log)), signal.SIGKILL)
        slurm(slurm_cli, "scancel", "--batch", "--signal=USR2", f"{array}_1")
        until((out / "run" / "base" / "logs" / "00001" / "1r1.log").exists, "the stopped rank to start again")
        assert not seen
        flag.touch()
        printed, errors = launched.communicate(timeout=300)
        assert launched.returncode == 0, printed + errors
    theirs = tmp_path / "datatrove"
    fineweb.run_datatrove(crawl, theirs)
    assert fineweb.documents(out) == fineweb.documents(theirs)
    assert fineweb.reasons_of_stagger(out / "run") == fineweb.reasons_of_datatrove(theirs)
    assert all(any(name.startswith(folder) for name in seen) for folder in fineweb.FOLDERS)
    assert seen == {name: {(out / name).stat().st_size} for name in seen}
    assert len(launches(out / "run" / "base")) > 1  # The killed rank was retried.
