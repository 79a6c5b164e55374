"""Two stages of one run, its handle, and a retry. Run it with: python examples/two_stages.py [SLURM_PARTITION]."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stagger import Document, LocalExecutor, PipelineExecutor, ReadJsonl, RunFailed, SlurmExecutor, WriteJsonl

DATA = Path(__file__).parent / "data"
RUN = Path("runs/two_stages").resolve()

#: A file that a step needs. The first launch does not have it.
STOP_WORDS = RUN / "stop_words.txt"


def without_stop_words(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    """Remove the stop words from each document."""
    for document in data:
        stop_words = set(STOP_WORDS.read_text().split())
        document.text = " ".join(word for word in document.text.split() if word.lower() not in stop_words)
        yield document


def with_length(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    """Note the number of words of each document."""
    for document in data:
        document.metadata["words"] = len(document.text.split())
        yield document


def stage(name: str, pipeline: list[Any], **arguments: Any) -> PipelineExecutor:
    """One stage of the run, on this machine, or in the partition that the command line names."""
    if partition := sys.argv[1:]:
        return SlurmExecutor(
            pipeline, name=name, run_dir=RUN / "run", partition=partition[0], time="0:10:00", **arguments
        )
    return LocalExecutor(pipeline, name=name, run_dir=RUN / "run", workers=2, **arguments)


if __name__ == "__main__":
    clean = stage(
        "clean",
        [ReadJsonl(str(DATA), glob="*.jsonl.gz"), without_stop_words, WriteJsonl(str(RUN / "clean"))],
        tasks=4,
    )
    measure = stage(
        "measure",
        [ReadJsonl(str(RUN / "clean")), with_length, WriteJsonl(str(RUN / "measured"))],
        tasks=2,
        depends=clean,
    )
    run = measure.run(wait=False)  # Both stages. The jobs go on without this process; Run.open finds them again.
    try:
        run.wait()
    except RunFailed:
        (failure,) = run.status()["clean"].failures
        print(f"{len(failure.ranks)} ranks failed at {failure.where}: {failure.sentence}")
        STOP_WORDS.write_text("a an and in of or the to")
        run.retry().wait()
    print(run.status(), *run.outputs(), sep="\n")
