"""Delays, in Python and in the job script."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter
from pathlib import Path

import pytest

from stagger.executor.job_script import ScriptContext, array_script
from stagger.spec.executors import SlurmSpec
from stagger.start.delays import Slots, slot_ms, spread_delay_ms, throttle_for_limit, uniform_delay, window_for_limit
from tests.conftest import Cli, PipelineFiles


def chi_square(draws: list[int], window: int) -> float:
    """Pearson's statistic against the uniform distribution over 0..window."""
    expected = len(draws) / (window + 1)
    counts = Counter(draws)
    assert set(counts) <= set(range(window + 1))
    return sum((counts[value] - expected) ** 2 / expected for value in range(window + 1))


def upper_bound(freedom: int) -> float:
    """A bound that chance exceeds once in 3e6 times (mean + 5 standard deviations + a margin for the skew)."""
    return freedom + 5 * math.sqrt(2 * freedom) + 20


@pytest.mark.parametrize("window", [1, 30, 180])
def test_python_draws_are_uniform_with_both_ends(window: int) -> None:
    draws = [uniform_delay(window) for _ in range(100_000)]
    assert {0, window} <= set(draws)
    assert chi_square(draws, window) < upper_bound(window)


def script(tmp_path: Path, window: int, slots: Slots | None = None) -> str:
    spec = SlurmSpec(type="slurm")
    context = ScriptContext(spec, str(tmp_path), "stage", 1, str(tmp_path), str(tmp_path), "settings.json")
    return array_script(context, "name", [[0], [1]], None, window, slots)


def bash_delays(tmp_path: Path, slots: Slots, count: int, restart: str = "") -> list[int]:
    """The delays of array elements 0, 1, ... in milliseconds, computed by the lines of the rendered script."""
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
    """The peak number of delays within any interval of `span_ms`."""
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
    """Many shells that start in one instant, as on nodes that start together, draw independent delays."""
    text = script(tmp_path, 9999)
    delay = text[text.index("STAGGER_SCRIPT_STARTED") : text.index("trap 'kill")]
    (tmp_path / "job.sh").write_text(f"{delay}\necho $STAGGER_DELAY_S\n")
    shells = [subprocess.Popen(["bash", tmp_path / "job.sh"], stdout=subprocess.PIPE) for _ in range(300)]
    draws = [int(shell.communicate()[0]) for shell in shells]
    assert sum(count - 1 for count in Counter(draws).values()) < 25  # 4.4 expected.
    assert chi_square([draw // 1000 for draw in draws], 9) < upper_bound(9)


@pytest.mark.parametrize("window", [0, 3, 30])
def test_job_script_draws_are_uniform_with_both_ends(tmp_path: Path, window: int) -> None:
    """bash runs the lines of the rendered script with a `sleep` that only prints its argument."""
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
    text = script(tmp_path, 0).replace('sleep "$STAGGER_DELAY_S" & wait', "sleep 100 & echo asleep; wait")
    for name, status in (("TERM", 143), ("USR2", 140)):
        job = subprocess.Popen(["bash", "-c", text], stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert job.stdout.readline() == "asleep\n"
        subprocess.run(["kill", f"-{name}", str(job.pid)], check=True)
        assert job.wait(timeout=10) == status
        job.stdout.close()


def test_the_delay_is_the_first_thing_that_the_script_does(tmp_path: Path) -> None:
    lines = [line for line in script(tmp_path, 180).splitlines() if line and not line.startswith("#")]
    before = lines[: next(i for i, line in enumerate(lines) if " sleep " in line)]
    assert [line.split("=")[0].split()[0] for line in before] == [
        "STAGGER_SCRIPT_STARTED",
        "while",
        "draw",
        "done",
        "STAGGER_DELAY_S",
        "trap",
        "trap",
    ]


def test_before_the_sleep_nothing_is_looked_up_but_the_systems_own(tmp_path: Path) -> None:
    """Nothing in the user's paths either: they may name folders on shared storage."""
    job, trace = tmp_path / "job.sh", tmp_path / "trace"
    shared = tmp_path / "shared"
    shared.mkdir()
    job.write_text(script(tmp_path, 0).partition("export STAGGER_DELAY_S")[0])
    job.chmod(0o700)
    env = {"PATH": f"{shared}:/usr/bin:/bin", "PYTHONPATH": str(shared), "HOME": str(shared), "USER": "me"}
    # As a job gets them; a test on the cluster verifies that.
    env |= {"LD_LIBRARY_PATH": "", "BASH_ENV": ""}
    env |= {f"STAGGER_LATER_{name}": str(shared) for name in ("LD_LIBRARY_PATH", "BASH_ENV")}
    subprocess.run(["strace", "-f", "-o", trace, "-e", "trace=file,network", job], env=env, cwd="/", check=True)
    calls = [line for line in trace.read_text().splitlines() if '"' in line]
    paths = [match[1] for line in calls if (match := re.search(r'"([^"]*)"', line))]
    (asleep,) = [index for index, line in enumerate(calls) if "execve" in line and "/sleep" in line and "= 0" in line]
    system = ("/usr/", "/lib", "/bin/", "/etc/", "/dev/", "/proc/", "/sys/", "/var/run/nscd/")
    assert paths[0] == str(job)
    foreign = {path for path in paths[1 : asleep + 1] if not path.startswith(system)}
    assert foreign <= {str(job), "/", ".", ""}  # slurmd runs its own copy of the script, in `/`; "" is an open file.


def test_a_job_keeps_its_place_after_its_work_unless_it_is_told_to_stop(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """The rank's record is written before; only the next job of the array comes later."""
    cli("launch", pipeline_file(tasks=2), check=0)
    record = json.loads((tmp_path / "run" / "launches" / "1" / "launch.json").read_text())
    done = tmp_path / "run" / "completions" / "00001.json"

    def task(hold_s: int, started: float) -> subprocess.Popen[str]:
        settings = {**json.loads(record["settings"]), "hold_s": hold_s}
        command = [sys.executable, "-I", "-m", "stagger.task", json.dumps(settings), "1"]
        env = {**cli.env, "STAGGER_SCRIPT_STARTED": f"{started}", "STAGGER_DELAY_S": "1.5"}
        done.unlink(missing_ok=True)
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    began = time.time()
    assert task(2, began + 0.5).wait(timeout=60) == 0
    assert time.time() >= began + 4  # The hold counts from the end of the delay.
    assert json.loads(done.read_text())["rank"] == 1
    held = task(600, time.time())
    assert held.stderr is not None
    while "holds its slot" not in (line := held.stderr.readline()):
        assert line
    assert done.exists()
    held.terminate()
    held.communicate(timeout=60)
    assert held.returncode == 0
