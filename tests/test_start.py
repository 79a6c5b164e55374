"""The staggered start: what is drawn, in Python and in the job script."""

from __future__ import annotations

import math
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from stagger.job_script import ScriptContext, array_script
from stagger.spec.models import SlurmSpec
from stagger.start import uniform_delay


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
    draws = [uniform_delay(window) for _ in range(20_000)]
    assert {0, window} <= set(draws)
    assert chi_square(draws, window) < upper_bound(window)


def script(tmp_path: Path, window: int) -> str:
    spec = SlurmSpec(type="slurm")
    context = ScriptContext(spec, str(tmp_path), "stage", 1, str(tmp_path), str(tmp_path), {})
    return array_script(context, "name", [[0], [1]], None, window, "{}")


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
