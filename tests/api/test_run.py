"""The handle of a run: what a script or a notebook does with a run after it is launched."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, Run, RunFailed, StaggerError, WriteJsonl
from tests.conftest import Cli, PipelineFiles, output_ids, until
from tests.kit.runs import EVERYTHING, failing_run, launches
from tests.kit.slurm_front import front

Make = Callable[..., LocalExecutor]


@pytest.fixture
def make(tmp_path: Path, shards: Path) -> Make:
    """Makes an executor of four ranks with the given steps, and folders of the test."""

    def executor(*steps: Any, **arguments: Any) -> LocalExecutor:
        pipeline = [ReadJsonl(str(shards)), *steps, WriteJsonl(str(tmp_path / "out"))]
        given: dict[str, Any] = {"tasks": 4, "workers": 2, "run_dir": str(tmp_path / "run"), "name": "job", **arguments}
        return LocalExecutor(pipeline, **given)

    return executor


def blocked_by(flag: Path) -> Any:
    """A step whose ranks wait for a file."""

    def wait(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        import time

        while not flag.exists():
            time.sleep(0.02)
        yield from data

    return wait


def failing(flag: Path, message: str = "language") -> Any:
    """A step that fails in ranks 1 and 2 until there is a file."""

    def fail(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        if rank in (1, 2) and not flag.exists():
            raise KeyError(message)
        yield from data

    return fail


def test_a_run_in_the_background_is_watched_waited_for_and_read(make: Make, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    run = make(blocked_by(flag)).run(wait=False)
    status = until(lambda: (now := run.status()).stages[0].running == 2 and now, "two ranks to run")
    assert (status.tasks, status.done, status["job"].pending, status.active, status.complete) == (4, 0, 2, True, False)
    assert not run.done()
    with pytest.raises(TimeoutError, match="has not ended yet: 0 of 4 ranks are done"):
        run.wait(timeout=0)
    assert (run.stages, run.job_ids, run.outputs(), run.failed_ranks) == (("job",), (), [], {})
    flag.touch()
    assert run.wait().complete
    assert run.done()
    assert run.outputs() == [str(tmp_path / "out" / f"{rank:05d}.jsonl.zst") for rank in range(4)]
    assert output_ids(tmp_path / "out") == EVERYTHING


def test_a_run_goes_on_when_its_process_has_ended_and_another_one_opens_it(tmp_path: Path, shards: Path) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "script.py").write_text(
        "import os, time\n"
        "from stagger import LocalExecutor, ReadJsonl, WriteJsonl\n"
        "def wait(data, rank, world_size):\n"
        f"    while not os.path.exists({str(flag)!r}):\n"
        "        time.sleep(0.02)\n"
        "    yield from data\n"
        "steps = [ReadJsonl('input'), wait, WriteJsonl('out')]\n"
        "LocalExecutor(steps, tasks=2, run_dir='run').run(wait=False)\n"  # Without a guard for __main__.
    )
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    run = Run.open(tmp_path / "run")
    assert not run.done()
    flag.touch()
    assert run.wait().done == 2
    assert output_ids(tmp_path / "out") == EVERYTHING


def test_failed_ranks_are_explained_and_retried(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "flag"
    run = make(failing(flag)).run(wait=False)  # Says nothing yet: the launch was accepted.
    with pytest.raises(RunFailed, match=r"2 ranks of .* failed: KeyError.*'language'") as raised:
        run.wait()
    assert raised.value.failed_ranks == run.failed_ranks == {"job": [1, 2]}
    (group,) = run.status()["job"].failures
    assert group.ranks == (1, 2)
    assert "'language'" in group.sentence
    assert group.where.startswith("test_run.py:")
    assert "KeyError: 'language'" in run.logs(1)
    assert "2 x KeyError" in repr(run.status())
    flag.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run.retry(1) is run
    with pytest.raises(RunFailed):
        run.wait()
    assert run.failed_ranks == {"job": [2]}
    assert run.retry(wait=True) == run
    assert Path.cwd() == elsewhere
    assert run.status().complete
    assert "KeyError" in run.logs(1, attempt="1")
    Path(run.outputs()[3]).unlink()
    assert run.status(verify=True)["job"].lost_ranks == (3,)
    assert run.retry(lost=True, wait=True).status(verify=True)["job"].lost_ranks == ()
    run.retry([0, 3], again=True)
    assert run.wait().complete
    assert output_ids(tmp_path / "out") == EVERYTHING


def test_wait_raises_for_a_run_that_was_cancelled(make: Make, tmp_path: Path) -> None:
    run = make(blocked_by(tmp_path / "flag")).run(wait=False)
    until(lambda: run.status().stages[0].running, "ranks to run")
    (stopped,) = run.cancel()
    assert stopped.startswith("stopped process ")
    with pytest.raises(RunFailed, match=r"were stopped before they were done \(job: 0-3\)"):
        run.wait()
    assert run.cancel() == []
    (tmp_path / "flag").touch()
    assert run.retry(wait=True).status().complete


def test_a_part_of_a_run_is_waited_for(make: Make) -> None:
    run = make().run(limit=3, wait=False)
    status = run.wait()
    assert (status.done, status.complete) == (3, False)
    assert Run.open(run.run_dir).wait().done == 3


def test_a_handle_can_be_pickled_and_used_by_threads(make: Make, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    run = make(blocked_by(flag)).run(wait=False)
    copies = [pickle.loads(pickle.dumps(run)), Run.open(tmp_path / "run"), run]
    assert copies == [run, run, run]
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(copy.wait) for copy in copies]
        flag.touch()
        assert [one.result().done for one in waiting] == [4, 4, 4]
    assert pickle.loads(pickle.dumps(run.status())) == run.status()


def test_a_handle_opens_runs_of_the_command_line(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag = failing_run(cli, pipeline_file, tmp_path, 2)
    run = Run.open(os.path.relpath(tmp_path / "run"))
    assert run.failed_ranks == {"run": [2]}
    flag.touch()
    run.retry(wait=True)
    assert cli("status", tmp_path / "run", check=0).out.startswith(str(tmp_path / "run"))
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_what_is_shown_of_an_error_is_escaped(make: Make, tmp_path: Path) -> None:
    run = make(failing(tmp_path / "flag", "<script>\x1b[2J")).run(wait=False)
    with pytest.raises(RunFailed):
        run.wait()
    shown = run._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "\x1b" not in shown + repr(run.status())
    assert "<td>job</td><td>4</td><td>2</td>" in shown
    assert "http" not in shown


def test_a_run_that_is_gone_is_an_error_of_one_sentence(make: Make, tmp_path: Path) -> None:
    run = make().run()
    shutil.rmtree(tmp_path / "run")
    for use in (run.status, run.wait, run.retry, run.cancel, run.outputs, run.done, lambda: run.logs(0)):
        with pytest.raises(StaggerError, match=r"There is no run in .*/run: it does not exist"):
            use()
    assert "There is no run" in run._repr_html_()
    assert repr(run) == f"Run.open({str(tmp_path / 'run')!r})"
    with pytest.raises(StaggerError, match="There is no run in"):
        Run.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda run: run.logs(4), "There is no rank 4: the ranks of job are 0 to 3"),
        (lambda run: run.logs(-1), "These are no ranks: -1"),
        (lambda run: run.logs(0, stage="jub"), "There is no stage 'jub'; did you mean 'job'"),
        (lambda run: run.logs(0, attempt="7"), "Rank 0 has no attempt 7; it has 1"),
        (lambda run: run.outputs("jub"), "There is no stage 'jub'; did you mean 'job'"),
        (lambda run: run.retry(0), "Rank 0 of job is done"),
        (lambda run: run.retry("1-"), "These are no ranks: '1-'"),
        (lambda run: run.retry([]), r"These are no ranks: \[\]"),
        (lambda run: run.retry(True), "These are no ranks: True"),
        (lambda run: run.retry([1.5]), r"These are no ranks: \[1.5\]"),
        (lambda run: run.retry(set={"tasks": 3}), "--set tasks: a retry cannot change tasks"),
        (lambda run: run.retry(memory_factor=0.5, wait=True), "The memory factor is 0.5; it must be from 1 to 100"),
        (lambda run: run.retry(time_factor=2, wait=True), "The time factor is for Slurm jobs"),
        (lambda run: run.cancel(range(3, 9)), "There is no rank 8"),
    ],
)
def test_mistakes_are_said(whole_run: Run, use: Callable[[Run], Any], said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        use(whole_run)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four ranks that is done."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text('{"text": "a"}\n')
    steps: list[Any] = [ReadJsonl(str(folder / "in")), WriteJsonl(str(folder / "out"))]
    return LocalExecutor(steps, tasks=4, run_dir=str(folder / "run"), name="job").run()


class Queue:
    """A Slurm run of four ranks, launched by the command line, whose jobs a stand-in for squeue describes."""

    def __init__(self, cli: Cli, files: PipelineFiles, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs = folder / "jobs"
        self.jobs.touch()
        self.event = folder / "event"
        self.event.touch()
        self.calls = front(cli, folder, squeue=f"cat {self.jobs}\nsource {self.event}")
        cli("launch", files(executor={"type": "slurm", "partition": "cpu"}), check=0)
        (self.launch,) = launches(folder / "run")
        self.run = Run.open(folder / "run")
        monkeypatch.setenv("PATH", cli.env["PATH"])

    def lists(self, state: str, reason: str = "None") -> None:
        (array,) = self.launch["arrays"]
        now = datetime.now().isoformat(timespec="seconds")
        rows = (f"{array['job_id']}|{rank}|{state}|9:59|{now}|{reason}|{array['name']}|x\n" for rank in range(4))
        self.jobs.write_text("".join(rows))


@pytest.fixture
def queue(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(cli, pipeline_file, tmp_path, monkeypatch)


def test_jobs_are_named_and_their_reasons_shown(queue: Queue) -> None:
    assert queue.run.job_ids == (queue.launch["arrays"][0]["job_id"], queue.launch["finalize"]["job_id"])
    queue.lists("PENDING", "AssocMaxJobsLimit")
    (why,) = queue.run.status()["run"].waiting
    assert (why.ranks, why.job_id, why.reason) == ((0, 1, 2, 3), queue.run.job_ids[0], "AssocMaxJobsLimit")
    assert why.message in repr(queue.run.status())
    assert not queue.run.done()


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_stops_waiting_and_cancels_nothing(queue: Queue) -> None:
    queue.lists("RUNNING")
    queue.event.write_text("kill -INT $PPID")
    with pytest.raises(KeyboardInterrupt):
        queue.run.wait()
    queue.event.write_text("")
    assert "scancel" not in queue.calls.read_text()
    assert queue.run.status()["run"].running == 4


def test_a_run_that_is_removed_while_it_is_waited_for_is_said_to_be_gone(queue: Queue) -> None:
    queue.lists("RUNNING")
    queue.event.write_text(f"rm -rf {queue.run.run_dir}")
    with pytest.raises(StaggerError, match="is gone: somebody has removed the run while this process waited"):
        queue.run.wait()


def test_a_retry_passes_on_settings_and_factors(queue: Queue) -> None:
    queue.run.retry(2, set={"executor.time": "0:10:00", "executor.mem_per_cpu_gb": 2}, memory_factor=1.5)
    *_, second = launches(Path(queue.run.run_dir))
    (array,) = second["arrays"]
    assert (array["ranks"], array["memory_scale"], array["time_scale"]) == ("2", 1.5, 1.0)
    script = Path(queue.run.run_dir, "launches", "2", f"{array['name']}.sh").read_text()
    assert "--time=0:10:00" in script
    assert "--mem-per-cpu=3072M" in script


def test_without_slurm_the_status_comes_from_the_records(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    status = queue.run.status()
    assert (status["run"].pending, status["run"].unknown) == (4, 4)
    assert "There is no squeue on this machine" in status.notes[0]
    assert not queue.run.done()
    with pytest.raises(StaggerError, match="There is no squeue on this machine, so it cannot know when the jobs"):
        queue.run.wait()


def test_a_thread_watches_the_run_of_its_own_process(make: Make, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    def watch() -> None:
        try:
            until((tmp_path / "run" / "launches" / "1" / "running.json").exists, "ranks to run")
            running = until(lambda: Run.open(tmp_path / "run").status()["job"].running, "their number")
            assert running == 2
            assert not Run.open(tmp_path / "run").done()
        finally:
            flag.touch()

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        make(blocked_by(flag)).run()
        watching.result()
