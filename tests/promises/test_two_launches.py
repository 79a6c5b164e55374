"""Concurrent launches: one runs, and the others are rejected."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING


def test_of_two_launches_at_once_one_refuses_and_names_the_other(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},))
    first = cli.start("launch", file)
    until((tmp_path / "flag-0").exists, "the first launch to run")
    for command in (("launch", file), ("retry", tmp_path / "run")):
        second = cli(*command, check=2)
        assert f"{tmp_path}/run is in use by process {first.pid} of " in second.err
    flag.touch()
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_many_launches_at_the_same_moment(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = pipeline_file(steps=({"my_steps:hold": {"flag": str(flag)}},), tasks=2)
    all_of_them = [cli.start("launch", file) for _ in range(6)]
    until(lambda: sum(p.poll() is not None for p in all_of_them) == 5, "five of six to refuse")
    flag.touch()
    ended = [(process.communicate(timeout=60), process.returncode) for process in all_of_them]
    assert sorted(code for _, code in ended) == [0, 2, 2, 2, 2, 2]
    assert all("is in use by process" in err for (_, err), code in ended if code == 2)
    assert not (tmp_path / "run" / "launches" / "2").exists()
