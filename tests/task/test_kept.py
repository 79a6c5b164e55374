"""What a step declares as `kept` is loaded once in a process, however many ranks it runs."""

from __future__ import annotations

from pathlib import Path

from stagger import kept
from stagger.task.making_steps import hand_on, take_over
from tests.conftest import Cli, PipelineFiles, output_ids

STEP = """
from stagger import kept

@kept("words", "loaded")
class Blocked:
    def __init__(self, minimum):
        self.minimum = minimum
        self.words = None
        self.seen = 0
    def __call__(self, data, rank, world_size):
        for document in data:
            if self.words is None:
                open("loads", "a").write("x")
                self.words = {"spam"}
            self.seen += 1
            yield document
        assert self.seen == 50, self.seen
"""


def test_what_is_kept_is_loaded_once_in_a_process(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "blocked.py").write_text(STEP)
    file = pipeline_file(
        steps=({"blocked:Blocked": {"minimum": 1}},), tasks=12, executor={"type": "local", "workers": 1}
    )
    cli("launch", file, check=0)
    assert (tmp_path / "loads").read_text() == "x"
    assert len(output_ids(tmp_path / "run-output")) == 600


@kept("words")
class Step:
    def __init__(self) -> None:
        self.words: set[str] = set()
        self.seen = 0

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Does nothing."""


class Derived(Step):
    """Declares nothing itself."""


def test_only_what_is_declared_is_handed_on_and_only_within_a_plan() -> None:
    for kind, plan, words in ((Step, "a", {"x"}), (Step, "b", set()), (Derived, "a", set())):
        first, second = kind(), kind()
        first.words.add("x")
        first.seen = 3
        hand_on("a", [first])
        take_over(plan, [second])
        assert (second.words, second.seen) == (words, 0)
