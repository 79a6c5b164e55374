"""Predicts each start policy's effect, and recommends one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from stagger.errors import agreeing, counted, plural
from stagger.start.account import most_within
from stagger.start.delays import (
    LOAD,
    LONG_WINDOW_S,
    auto_window,
    share_of_limit,
    throttle_for_limit,
    window_for_limit,
)
from stagger.start.herd import Herd, metadata_waits, simulate

#: Peaks depend on the draws. Each is a median over up to MOST_REPEATS herds, with up to REPEATED_JOBS jobs in all.
REPEATED_JOBS, MOST_REPEATS = 50_000, 9


@dataclass(frozen=True)
class Expected:
    """Prediction for one policy. Rates per second, times in seconds; None if the simulation was stopped early.

    mean_per_s: mean starts per second over the window; None if all jobs start at once.
    peak_1s, peak_100ms: peak starts within any 1 s, and any 100 ms.
    requests_peak_1s, requests_peak_100ms: the same for requests to the storage.
    operations_peak_1s: peak metadata operations that starts ask for within any 1 s.
    refused, failed: rejected requests, and jobs that give up.
    last_start_s: when the last job has started.
    idle_core_h: core-hours that jobs sleep, wait for the storage or the file system, or hold their slots for a limit.
    idle_share: idle_core_h as a share of all core-hours of the run.
    """

    name: str
    policy: str
    window_s: int
    mean_per_s: float | None
    peak_1s: int
    peak_100ms: int
    requests_peak_1s: int
    requests_peak_100ms: int
    operations_peak_1s: int
    refused: int
    failed: int | None
    last_start_s: float | None
    idle_core_h: float
    idle_share: float
    complete: bool
    requests: list[float] = field(repr=False)
    starts: list[float] = field(repr=False)

    def document(self) -> dict[str, Any]:
        """All fields except the times of single events."""
        return {key: value for key, value in vars(self).items() if key not in ("requests", "starts")}


def expect(name: str, herd: Herd, cores: float = 1.0, seed: int = 0) -> Expected:
    """Simulate a herd whose jobs have `cores` cores each."""
    outcome = simulate(herd, seed)
    repeats = max(1, min(MOST_REPEATS, REPEATED_JOBS // herd.jobs))
    alone = replace(herd, requests=0, limit=None)
    starts = [outcome.starts, *(simulate(alone, seed + number).starts for number in range(1, repeats))]
    peaks = [round(median(most_within(times, span) for times in starts)) for span in (1.0, 0.1)]
    waited_s, answered_s = metadata_waits(outcome.starts, herd.operations, herd.metadata_limit)
    idle_s = herd.asleep_s + outcome.waited_s + waited_s + herd.kept_s
    all_s = idle_s + herd.jobs * herd.task_s
    return Expected(
        name,
        herd.policy,
        herd.window_s,
        mean_rate(herd),
        peak_1s=peaks[0],
        peak_100ms=peaks[1],
        requests_peak_1s=most_within(outcome.requests, 1.0),
        requests_peak_100ms=most_within(outcome.requests, 0.1),
        operations_peak_1s=peaks[0] * herd.operations,
        refused=outcome.refused,
        failed=outcome.failed if outcome.complete else None,
        last_start_s=round(max(outcome.last_start_s, answered_s), 2) if outcome.complete else None,
        idle_core_h=round(idle_s * cores / 3600, 2),
        idle_share=round(idle_s / all_s, 4) if all_s else 0.0,
        complete=outcome.complete,
        requests=outcome.requests,
        starts=outcome.starts,
    )


def mean_rate(herd: Herd) -> float | None:
    """Mean starts per second of the first wave; None if all start at once. `uniform` draws from window + 1 seconds."""
    span = herd.window_s + (herd.policy == "uniform") if herd.window_s else 0.0
    if herd.dispatch_rate:
        span = max(span, herd.wave / herd.dispatch_rate)
    return round(herd.wave / span, 2) if span else None


@dataclass(frozen=True)
class StartPlan:
    """The policies side by side for one launch.

    herd: the launch as configured, or, without a pipeline file, with the defaults.
    rows: one prediction per policy; `now` is the name of the row for `herd`.
    recommended: settings, as keys of a pipeline file.
    reason: the reason for them, as a sentence.
    steady_throttle: jobs at once that the limit allows in steady state; None without a limit.
    """

    herd: Herd
    cores: float
    rows: list[Expected]
    now: str
    recommended: dict[str, Any]
    reason: str
    steady_throttle: int | None

    def row(self, name: str) -> Expected:
        """The row of this name. Raises KeyError when there is none."""
        return {row.name: row for row in self.rows}[name]

    def document(self) -> dict[str, Any]:
        """The plan as `stagger plan --json` prints it."""
        herd = vars(self.herd)
        return {
            **{key: value for key, value in herd.items() if key not in ("policy", "window_s")},
            "cores_per_job": self.cores,
            "launch": {"name": self.now, "policy": self.herd.policy, "window_s": self.herd.window_s},
            "policies": [row.document() for row in self.rows],
            "recommended": self.recommended,
            "reason": self.reason,
            "steady_state_throttle": self.steady_throttle,
        }


def limit_window(herd: Herd) -> int:
    """The shortest window, in whole seconds, that keeps the first wave below 0.8 of each limit; 0 without a limit."""
    return math.ceil(max((window_for_limit(herd.wave, load.each, load.limit) for load in herd.loads), default=0.0))


def steady_throttle(herd: Herd) -> int | None:
    """Jobs at once that all limits allow in steady state; None without a limit."""
    return min((throttle_for_limit(herd.task_s, load.each, load.limit) for load in herd.loads), default=None)


def start_plan(
    herd: Herd, tasks: int, *, cores: float = 1.0, exact: bool = False, other: int | None = None, seed: int = 0
) -> StartPlan:
    """Compare a start at once, both policies over the default window, the window for the limit, and the herd as it is.

    `exact`: whether a launch counts the herd's requests itself, and so finds the same window for a backend_limit.
    `other`: one more window to compare, in seconds.
    """
    window, jitter_s = auto_window(tasks), herd.jitter_s

    def over(window_s: int, **changes: Any) -> Herd:
        """The herd with another window. Without one it is the worst case: all at once."""
        return replace(herd, window_s=window_s, jitter_s=jitter_s if window_s else 0.0, **changes)

    herd = over(herd.window_s)
    herds = {
        "none": over(0, policy="uniform"),
        "uniform": over(window, policy="uniform"),
        "spread": over(window, policy="spread"),
    }
    if herd.limit or herd.loads:
        needed = limit_window(herd)
        hold_s = needed if herd.wave < herd.jobs else 0
        share = herd.share or (share_of_limit(herd.wave, herd.workers, herd.limit) if herd.limit else 0.0)
        herds["limit"] = over(needed, policy="spread", hold_s=hold_s, share=share)
    if herd not in herds.values():
        herds["as set"] = herd
    now = next(name for name, each in herds.items() if each == herd)
    if other is not None and over(other) not in herds.values():
        herds["window"] = over(other)
    recommended, reason = recommend(herd, exact)
    return StartPlan(
        herd,
        cores,
        [expect(name, each, cores, seed) for name, each in herds.items()],
        now,
        recommended,
        reason,
        steady_throttle(herd),
    )


def recommend(herd: Herd, exact: bool) -> tuple[dict[str, Any], str]:
    """The recommended settings, as keys of a pipeline file, and the reason for them."""
    if herd.jobs == 1:
        return {"randomize_start_duration": 0}, "a single job does not compete with others"
    loads = herd.loads
    if not loads:
        more = "no request goes to remote storage" if herd.limit else "--backend-limit would determine the window"
        return {"start_policy": "spread"}, f"starts as even as a grid; {more}"
    if herd.dispatch_rate and all(herd.dispatch_rate * load.each <= LOAD * load.limit for load in loads):
        what = " and ".join(plural(2, load.what) for load in loads)
        why = f"Slurm starts {herd.dispatch_rate:g} jobs per second, whose {what} stay below {LOAD} of the limit"
        return {"randomize_start_duration": 0}, why
    window = limit_window(herd)
    tightest = max(loads, key=lambda load: load.each / load.limit)
    chosen: dict[str, Any] = {"start_policy": "spread"}
    chosen |= {load.key: load.limit for load in loads} if exact else {"randomize_start_duration": window}
    steady = min(throttle_for_limit(herd.task_s, load.each, load.limit) for load in loads)
    # Jobs that take turns hold their slots only in a launch with a limit; otherwise they must be few enough.
    if window <= LONG_WINDOW_S and (exact or herd.wave == herd.jobs or herd.wave <= steady):
        each = counted(tightest.each, tightest.what)
        why = f"{counted(herd.wave, 'job')} with {each} each, over {window} s,"
        why += f" {agreeing(herd.wave, 'uses')} {LOAD} of the limit"
        if 2 * tightest.each > tightest.limit:
            why += "; two jobs that start close together still exceed it, and "
            why += "retry" if tightest.key == "backend_limit" else "wait"
        return chosen, why
    workers = max(1, min(math.floor(LONG_WINDOW_S * LOAD * tightest.limit / tightest.each), steady))
    short = math.ceil(window_for_limit(workers, tightest.each, tightest.limit))
    if not exact:
        chosen["randomize_start_duration"] = short
    if window > LONG_WINDOW_S:
        why = f"{counted(herd.wave, 'job')} at once would have to sleep up to {window:,} s on their processors"
    else:
        why = f"{counted(herd.wave, 'job')} of {herd.task_s:g} s that take turns would exceed the limit"
    why += f"; {workers:,} at once start within {short} s"
    return {**chosen, "executor": {"workers": workers}}, why


def first_wave(herd: Herd) -> list[float]:
    """The start times of the first wave, in ascending seconds."""
    return simulate(replace(herd, jobs=herd.wave, limit=None, requests=0)).starts


def summary(herd: Herd, cores: float) -> str:
    """Summarize the start of a launch in one line."""
    starts = first_wave(herd)
    jobs = counted(herd.jobs, "job")
    who = jobs if herd.wave == herd.jobs else f"the first {herd.wave:,} of {jobs}"
    starting = f"{who} {agreeing(herd.wave, 'starts')}"
    if not herd.window_s:
        return f"{starting} at once"
    peaks = f"peak {most_within(starts, 1.0):,} in 1 s, {most_within(starts, 0.1):,} in 100 ms"
    hours = f"{herd.asleep_s * cores / 3600:,.1f} core-hours asleep"
    kept = f"; each holds its slot for at least {herd.hold_s} s" if herd.hold_s else ""
    return f"{starting} over {herd.window_s} s ({herd.policy}), {peaks}; {hours}{kept}"
