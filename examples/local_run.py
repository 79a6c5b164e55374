"""The quickstart pipeline in Python. Run it with: python examples/local_run.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from stagger import Document, LocalExecutor, ReadJsonl, WriteJsonl

DATA = Path(__file__).parent / "data"


def shout(data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
    """Turn the text into capitals. A step is any callable over documents; it runs in the worker processes."""
    for document in data:
        document.text = document.text.upper()
        yield document


if __name__ == "__main__":
    run = LocalExecutor(
        pipeline=[ReadJsonl(str(DATA), glob="*.jsonl.gz"), shout, WriteJsonl("runs/shout/output")],
        tasks=8,
        workers=2,
        run_dir="runs/shout",
        name="shout",
    ).run()
    print(run.status(), *run.outputs(), sep="\n")
