"""Several stages from Python: executors that depend on one another are stages of one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, Run, RunFailed, SlurmExecutor, StaggerError, WriteJsonl, run_stages
from tests.conftest import output_ids
from tests.kit.runs import EVERYTHING

Make = Callable[..., LocalExecutor]


@pytest.fixture
def make(tmp_path: Path, shards: Path) -> Make:
    """Makes the executor of a stage, which reads what the stage `source` writes, or the shards."""

    def stage(name: str, /, *steps: Any, source: str = "", **arguments: Any) -> LocalExecutor:
        pipeline = [ReadJsonl(str(tmp_path / source if source else shards)), *steps, WriteJsonl(str(tmp_path / name))]
        return LocalExecutor(pipeline, **{"run_dir": str(tmp_path / "run"), "name": name, "tasks": 2, **arguments})

    return stage


def names_of(executor: LocalExecutor | SlurmExecutor) -> list[str]:
    return [stage.name for stage in executor.spec.stages]


def test_the_last_of_a_chain_launches_all_and_each_begins_when_the_one_before_is_done(
    make: Make, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    mark = "!"

    def fail(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        if rank == 1 and not flag.exists():
            raise RuntimeError("no")
        for document in data:
            document.text += mark
            yield document

    clean = make("clean", fail)
    merge = make("merge", source="clean", depends=clean, tasks=3)
    count = make("count", lambda data, rank, world_size: data, source="merge", depends=[merge], tasks=1)
    run = count.run(wait=False)
    with pytest.raises(RunFailed) as raised:
        run.wait()
    assert raised.value.failed_ranks == {"clean": [1]}
    assert [(stage.name, stage.done, stage.failed, stage.pending) for stage in run.status().stages] == [
        ("clean", 1, 1, 0),
        ("merge", 0, 0, 3),
        ("count", 0, 0, 1),
    ]
    assert not (tmp_path / "run" / "merge" / "plan").exists()  # Its input is listed when it is complete.
    flag.touch()
    run.retry()
    assert run.wait().complete
    assert run.outputs() == [str(tmp_path / "count" / "00000.jsonl.zst")]
    assert len(run.outputs("merge")) == 2  # The third rank has no input, and writes no file.
    assert output_ids(tmp_path / "count") == EVERYTHING
    assert count.run() == run
    launches = sorted(
        str(path.relative_to(tmp_path / "run").parent) for path in (tmp_path / "run").rglob("launch.json")
    )
    assert launches == ["clean/launches/1", "clean/launches/2", "count/launches/1", "merge/launches/1"]


def test_a_stage_that_was_changed_in_the_script_and_waits_runs_as_it_is_now(make: Make, tmp_path: Path) -> None:
    def fail(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        if not (tmp_path / "flag").exists():
            raise RuntimeError("no")
        yield from data

    def script(mark: str) -> LocalExecutor:
        def add(data: Any, rank: int, world_size: int) -> Iterator[Any]:
            for document in data:
                document.id = mark
                yield document

        return make("merge", add, source="clean", depends=make("clean", fail))

    with pytest.raises(RunFailed):
        script("old").run()
    (tmp_path / "flag").touch()
    script("new").run()
    assert set(output_ids(tmp_path / "merge")) == {"new"}


def test_several_last_stages_are_launched_together(make: Make, tmp_path: Path) -> None:
    first = make("first")
    left, right = (make(name, source="first", depends=first) for name in ("left", "right"))
    run = run_stages([left, right])
    assert run.stages == ("first", "left", "right")
    assert sorted(run.outputs()) == sorted(
        str(tmp_path / side / f"{rank:05d}.jsonl.zst") for side in ("left", "right") for rank in range(2)
    )
    assert names_of(make("end", depends=[left, right])) == ["first", "left", "right", "end"]


def test_a_limit_of_no_rank_is_refused(make: Make) -> None:
    with pytest.raises(StaggerError, match="limit: expected a whole number of at least 1, not"):
        make("one").run(limit=0)


def test_ranks_of_a_stage_are_named_with_it(make: Make) -> None:
    run = make("merge", source="clean", depends=make("clean")).run()
    for use in (run.logs, run.retry, run.cancel):
        with pytest.raises(StaggerError, match="The run has several stages; choose one with stage=: clean, merge"):
            use(1)
    run.retry(1, stage="merge", again=True, wait=True)
    assert "2.log" in {path.name for path in Path(run.run_dir, "merge", "logs", "00001").iterdir()}


def test_options_of_the_whole_run_are_given_once_or_alike(make: Make) -> None:
    clean = make("clean", retry_seconds=5, shared=None)
    assert make("merge", depends=clean).spec.retry_seconds == 5
    assert make("merge", depends=clean, retry_seconds=5.0).spec.retry_seconds == 5
    with pytest.raises(StaggerError, match=r"'merge': retry_seconds is 7, but LocalExecutor 'clean' has 5\. Stages"):
        make("merge", depends=clean, retry_seconds=7)


def test_stages_of_a_run_are_executors_of_any_kind(make: Make, tmp_path: Path) -> None:
    clean = SlurmExecutor([print], run_dir=tmp_path / "run", name="clean", partition="cpu", qos="low")
    spec = make("merge", depends=clean).spec
    assert [stage.executor.type for stage in spec.stages] == ["slurm", "local"]
    assert spec.origins["stages.clean.executor.qos"] == "SlurmExecutor"
    assert spec.stage("merge").depends == ("clean",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"run_dir": "/elsewhere"},
            "'merge': run_dir is '/elsewhere', but LocalExecutor 'clean' has .*/run'.*give them",
        ),
        ({"name": "clean"}, "2 executors are called 'clean'; give each stage a name of its own"),
        ({"name": "run.json"}, "a stage cannot be called 'run.json'"),
        ({"depends": "clean"}, "depends: pass an executor, or a list of them, not 'clean'"),
        ({"depends": ["clean"]}, "depends: pass executors, not 'clean'"),
        ({"depends": Run("run")}, "depends: pass the executor, not the handle of its run"),
    ],
)
def test_stages_that_make_no_run_are_refused(make: Make, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        make("merge", **{"depends": make("clean"), **arguments})


def test_stages_that_wait_for_each_other_are_refused(make: Make) -> None:
    clean = make("clean")
    merge = make("merge", depends=clean)
    clean.depends = [merge]
    with pytest.raises(StaggerError, match="These stages wait for each other: merge -> clean -> merge"):
        merge.run()


def test_a_stage_alone_is_no_part_of_a_run_with_several(make: Make, tmp_path: Path) -> None:
    clean = make("clean")
    make("merge", source="clean", depends=clean).run()
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    with pytest.raises(StaggerError, match=r"with the stages clean, merge.*stagger retry .*/run --stage clean"):
        clean.run()
    with pytest.raises(StaggerError, match="holds another run, with the stages clean, merge"):
        make("end", depends=make("merge", depends=clean)).run()
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == before


def test_steps_of_a_waiting_stage_are_checked_before_anything_is_launched(make: Make, tmp_path: Path) -> None:
    def wrong(data: Any) -> Any:
        return data

    with pytest.raises(StaggerError, match=r"wrong\) takes .*, but every step is called with"):
        make("merge", wrong, source="clean", depends=make("clean")).run()
    assert not (tmp_path / "run").exists()
