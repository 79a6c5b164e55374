"""The staggered start: what is drawn, in Python and in the job script."""

from __future__ import annotations

import json
import math
import re
import subprocess
import zlib
from bisect import bisect_left
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stagger.job_script import ScriptContext, array_script
from stagger.spec.models import SlurmSpec
from stagger.start import Slots, slot_ms, spread_delay_ms, throttle_for_limit, uniform_delay, window_for_limit
from stagger.starts import start_account
from tests.conftest import Bucket, Cli, PipelineFiles


def chi_square(draws: list[int], window: int) -> float:
    """Pearson's statistic against the uniform distribution over 0..window."""
    expected = len(draws) / (window + 1)
    counts = Counter(draws)
    assert set(counts) <= set(range(window + 1))
    return sum((counts[value] - expected) ** 2 / expected for value in range(window + 1))


def upper_bound(freedom: int) -> float:
    """Exceeded by chance once in 3e6 times (mean + 5 standard deviations + a margin for the skew)."""
    return freedom + 5 * math.sqrt(2 * freedom) + 20


@pytest.mark.parametrize("window", [1, 30, 180])
def test_python_draws_are_uniform_with_both_ends(window: int) -> None:
    draws = [uniform_delay(window) for _ in range(100_000)]
    assert {0, window} <= set(draws)
    assert chi_square(draws, window) < upper_bound(window)


def script(tmp_path: Path, window: int, slots: Slots | None = None) -> str:
    spec = SlurmSpec(type="slurm")
    context = ScriptContext(spec, str(tmp_path), "stage", 1, str(tmp_path), str(tmp_path), {})
    return array_script(context, "name", [[0], [1]], None, window, "{}", slots)


def bash_delays(tmp_path: Path, slots: Slots, count: int, restart: str = "") -> list[int]:
    """The delays of array elements 0, 1, ... in milliseconds, by the very lines of the rendered script."""
    text = script(tmp_path, slots.window_s, slots)
    delay = text[text.index("STAGGER_SCRIPT_STARTED") : text.index("trap 'kill")]
    loop = (
        f"{restart}\nfor ((i = 0; i < {count}; i++)); do SLURM_ARRAY_TASK_ID=$i\n{delay}\necho $STAGGER_DELAY_S\ndone"
    )
    out = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True).stdout
    return [int(line.replace(".", "")) for line in out.split()]


@pytest.mark.parametrize(
    ("slots", "count", "restart"),
    [
        (Slots(180, 0, 100_000, 30, 0), 100_000, 0),
        (Slots(180, 500, 300, 30, 4_294_967_295), 1000, 0),
        (Slots(86_400, 999_000, 1000, 30, 123_456_789), 1000, 3),
        (Slots(1, 0, 10, 1, 7), 50, 1),
        (Slots(0, 0, 10, 0, 7), 50, 1),
    ],
)
def test_bash_and_python_find_the_same_slot_for_every_index(
    tmp_path: Path, slots: Slots, count: int, restart: int
) -> None:
    found = bash_delays(tmp_path, slots, count, f"SLURM_RESTART_COUNT={restart}" if restart else "")
    assert found == [slot_ms(slots, index, restart) for index in range(count)]


def most_within(delays: list[int], span_ms: int) -> int:
    """The most delays that fall into any interval of that length."""
    ordered = sorted(delays)
    return max(bisect_left(ordered, delay + span_ms) - index for index, delay in enumerate(ordered))


@pytest.mark.parametrize(
    ("jobs", "window", "salt"), [(8000, 180, 0), (8000, 180, 99), (1000, 60, 5), (100_000, 180, 1)]
)
def test_slots_are_as_even_as_a_grid_and_so_are_those_of_neighbours(jobs: int, window: int, salt: int) -> None:
    delays = [spread_delay_ms(index, window, salt) for index in range(jobs)]
    assert 0 <= min(delays) <= max(delays) < window * 1000
    assert most_within(delays, 1000) <= 1.1 * jobs / window
    assert most_within(delays, 100) <= 1.1 * jobs / window / 10 + 2
    assert max(most_within(delays[start : start + 64], 1000) for start in range(0, jobs, 61)) <= 2


def test_arrays_of_one_launch_are_one_wave() -> None:
    whole = [slot_ms(Slots(180, 0, 1000, 30, 7), index) for index in range(1000)]
    parts = [slot_ms(Slots(180, first, 250, 30, 7), index) for first in range(0, 1000, 250) for index in range(250)]
    assert parts == whole


def test_only_the_first_wave_takes_the_window_and_a_restart_another_slot() -> None:
    slots = Slots(180, 0, 500, 30, 7)
    assert max(slot_ms(slots, index) for index in range(500)) > 170_000
    assert max(slot_ms(slots, index) for index in range(500, 8000)) < 30_000
    again = [slot_ms(slots, index, restart=1) for index in range(500)]
    assert sum(slot_ms(slots, index) == delay for index, delay in enumerate(again)) == 0
    assert most_within(again, 1000) <= 4


def test_windows_and_throttles_for_a_limit() -> None:
    assert [round(window_for_limit(8000, 4, limit)) for limit in (50, 3500, 5500)] == [800, 11, 7]
    assert [throttle_for_limit(600, 10, limit) for limit in (50, 3500)] == [2400, 168_000]


def test_simultaneous_shells_draw_independently(tmp_path: Path) -> None:
    """Many shells in one instant, as on nodes that start together: their draws are as unlike as chance makes them."""
    text = script(tmp_path, 9999)
    delay = text[text.index("STAGGER_SCRIPT_STARTED") : text.index("trap 'kill")]
    (tmp_path / "job.sh").write_text(f"{delay}\necho $STAGGER_DELAY_S\n")
    shells = [subprocess.Popen(["bash", tmp_path / "job.sh"], stdout=subprocess.PIPE) for _ in range(300)]
    draws = [int(shell.communicate()[0]) for shell in shells]
    assert sum(count - 1 for count in Counter(draws).values()) < 25  # 4.4 expected.
    assert chi_square([draw // 1000 for draw in draws], 9) < upper_bound(9)


@pytest.mark.parametrize("window", [0, 3, 30])
def test_job_script_draws_are_uniform_with_both_ends(tmp_path: Path, window: int) -> None:
    """The very lines of the rendered script, run by bash with a `sleep` that only writes down what it was asked."""
    text = script(tmp_path, window)
    delay = text[text.index("STAGGER_SCRIPT_STARTED") : text.index("trap - TERM")]
    loop = f"sleep() {{ echo $1; }}\nfor i in {{1..3000}}; do\n{delay}\ndone"
    out = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True).stdout
    draws = [int(line) for line in out.split()]
    assert len(draws) == 3000
    assert {0, window} <= set(draws)
    if window:
        assert chi_square(draws, window) < upper_bound(window)


def test_without_a_random_variable_of_bash_the_kernel_is_asked(tmp_path: Path) -> None:
    """bash before 5.1 has no SRANDOM."""
    text = script(tmp_path, 7)
    delay = text[text.index("STAGGER_SCRIPT_STARTED") : text.index("trap - TERM")]
    loop = f"unset SRANDOM\nsleep() {{ echo $1; }}\nfor i in {{1..60}}; do\n{delay}\ndone"
    out = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True).stdout
    draws = {int(line) for line in out.split()}
    assert draws <= set(range(8))
    assert len(draws) > 4


def test_a_signal_during_the_delay_ends_the_job_at_once(tmp_path: Path) -> None:
    text = script(tmp_path, 0).replace('sleep "$STAGGER_DELAY_S"', "sleep 100")
    text = text.replace("sleep 100 & wait", "sleep 100 & echo asleep; wait")
    for name, status in (("TERM", 143), ("USR2", 140)):
        job = subprocess.Popen(["bash", "-c", text], stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert job.stdout.readline() == "asleep\n"
        subprocess.run(["kill", f"-{name}", str(job.pid)], check=True)
        assert job.wait(timeout=10) == status
        job.stdout.close()


def test_the_delay_is_the_first_thing_that_the_script_does(tmp_path: Path) -> None:
    lines = [line for line in script(tmp_path, 180).splitlines() if line and not line.startswith("#")]
    before = lines[: next(i for i, line in enumerate(lines) if line.startswith("sleep "))]
    assert [line.split("=")[0].split()[0] for line in before] == [
        "STAGGER_SCRIPT_STARTED",
        "while",
        "STAGGER_DELAY_S",
        "trap",
        "trap",
    ]


SLURM = {"type": "slurm"}


def dry_run(cli: Cli, file: Path) -> tuple[dict[str, Any], str]:
    ran = cli("launch", file, "--dry-run", "--json", check=0)
    return ran.json["stages"][0]["start"], ran.err


def test_the_window_for_a_limit_and_what_is_said_about_it(
    cli: Cli, bucket: Bucket, shards: Path, pipeline_file: PipelineFiles
) -> None:
    """With its run directory and input on S3 a task starts by three requests: two of the plan, one of its shard."""
    cli.env.update(bucket.env)
    bucket.files.put([str(path) for path in sorted(shards.iterdir())], f"{bucket.name}/input/")

    def file(**more: Any) -> Path:
        options = {"executor": SLURM, "tasks": 12, **more}
        return pipeline_file(source=f"{bucket.url}/input", run_dir=f"{bucket.url}/run", **options)

    assert dry_run(cli, file(backend_limit=1.5))[0] == {"policy": "spread", "window_s": 30}  # 12 * 3 / (0.8 * 1.5)
    assert dry_run(cli, file(backend_limit=1.5, start_policy="uniform"))[0] == {"policy": "uniform", "window_s": 30}
    throttled = {**SLURM, "workers": 4}
    assert dry_run(cli, file(backend_limit=1.5, executor=throttled))[0] == {"policy": "spread", "window_s": 10}
    start, said = dry_run(cli, file(backend_limit=1.5, randomize_start_duration=20))
    assert start == {"policy": "spread", "window_s": 20}
    assert "starts over 20 s ask for more than 0.8 of backend_limit; it needs 30 s" in said
    start, said = dry_run(cli, file(backend_limit=0.1))
    assert start["window_s"] == 450
    assert "sleeps 225 s on average on its processors" in said


def test_a_limit_without_remote_storage_is_refused(cli: Cli, pipeline_file: PipelineFiles) -> None:
    ran = cli("launch", pipeline_file(executor=SLURM, backend_limit=50), "--dry-run", check=2)
    assert "its run_dir and input are local paths. Set randomize_start_duration instead." in ran.err


def test_local_workers_take_their_slots(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    cli("launch", pipeline_file(start_policy="spread", randomize_start_duration=1), check=0)
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "completions").iterdir()]
    salt = zlib.crc32(records[0]["fingerprint"].encode())
    assert {record["delay_s"] for record in records} <= {spread_delay_ms(worker, 1, salt) / 1000 for worker in range(2)}


def test_starts_are_counted_per_job_and_shown_beside_what_was_planned(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    jobs = [(f"7_{index}", 1, 0, 100.0 + index * 0.3, index % 3) for index in range(30)]
    records = [
        {"job": job, "launch": launch, "restart": restart, "script_started": began, "delay_s": delay}
        for job, launch, restart, began, delay in jobs
        for _ in range(2)  # Two ranks a job.
    ]
    account = start_account(records)
    assert account["jobs"] == 30
    assert account["planned"] == {"peak_1s": 10, "peak_100ms": 10, "span_s": 2.0, "per_second": [10, 10, 10]}
    measured = sorted(began + delay for _, _, _, began, delay in jobs)
    assert account["measured"]["peak_1s"] == max(
        sum(start <= other < start + 1 for other in measured) for start in measured
    )
    assert sum(account["measured"]["per_second"]) == 30
    assert start_account([])["measured"]["per_second"] == []
    # The slots of two neighbours in 6 s lie 2.3 or 3.7 s apart, whatever the salt.
    cli("launch", pipeline_file(start_policy="spread", randomize_start_duration=6), check=0)
    shown = cli("status", tmp_path / "run", check=0).out
    assert re.search(r"jobs started: at most \d in a second, \d in 100 ms; by their delays alone 1 in a second", shown)
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["starts"]["jobs"] == 2
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
