"""An attempt that freezes anywhere in its commit and wakes when a later one has committed changes nothing any more."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.kit.frozen import DECISIVE, Point, Scene, round_of
from tests.kit.s3_server import S3Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running("--bucket", "runs") as started:
        yield started


@pytest.fixture(autouse=True)
def strace() -> None:
    if shutil.which("strace") is None:
        missing("strace")


def chosen(points: list[Point], others: int) -> list[Point]:
    """All points that change something, and some of the others."""
    rest = [point for point in points if point.call not in DECISIVE]
    some = random.Random(len(points)).sample(rest, min(others, len(rest)))
    return [point for point in points if point.call in DECISIVE or point in some]


def broken(scene: Scene, points: list[Point]) -> dict[Point, list[str]]:
    found = {point: round_of(scene, point) for point in points}
    assert sum(wrong is not None for wrong in found.values()) >= len(points) * 0.9, "most points are reached"
    return {point: wrong for point, wrong in found.items() if wrong}


@pytest.mark.parametrize(("commit", "few"), [("rank", "new"), ("rank", "old"), ("shard", "new")])
def test_on_a_file_system(tmp_path: Path, commit: str, few: str) -> None:
    scene = Scene(tmp_path / "scene", commit, few)
    points = scene.points()
    assert {point.call for point in points} > {"fsync", "rename", "link", "unlink"}
    assert broken(scene, chosen(points, 10)) == {}


@pytest.mark.parametrize(
    ("engine", "commit", "few"), [("obstore", "rank", "new"), ("s3fs", "rank", "old"), ("obstore", "shard", "new")]
)
def test_on_s3(tmp_path: Path, server: S3Server, engine: str, commit: str, few: str) -> None:
    scene = Scene(tmp_path / f"{engine}-{commit}-{few}", commit, few, engine, server)
    points = scene.points()
    last = points[-2 * len(scene.expected["old"]) - 8 :]  # The requests of the commit, and of what comes after it.
    assert broken(scene, last if commit == "rank" else points[::2]) == {}


def test_files_of_a_commit_that_was_killed_are_named_until_a_retry_replaces_them(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene")
    renames = [point for point in scene.points() if point.call == "rename"]
    scene.kill_at(renames[2])
    left = scene.outputs()
    assert len(left) == 2
    said = scene.stagger("status", "run")
    assert f"{len(left)} visible output files belong to no completed attempt (of rank 1)" in " ".join(said.split())
    done = scene.stagger("retry", "run")
    assert "belong" not in done
    assert scene.outputs() == scene.expected["new"]
