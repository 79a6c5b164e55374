"""What to expect of each start policy, and which one to take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from stagger.start.account import most_within
from stagger.start.delays import LOAD, LONG_WINDOW_S, auto_window, throttle_for_limit, window_for_limit
from stagger.start.herd import Herd, simulate

#: A peak depends on the draws: it is the median of several herds, as long as so many jobs in all are not exceeded.
REPEATED_JOBS, MOST_REPEATS = 50_000, 9


@dataclass(frozen=True)
class Expected:
    """What to expect of one policy. Rates per second, times in seconds; None where a simulation was stopped early.

    mean_per_s: starts per second over the window; None when all start at once.
    peak_1s, peak_100ms: the most starts within any second, and any 100 ms.
    requests_peak_1s, requests_peak_100ms: likewise the requests that reach the storage.
    refused, failed: requests that the storage refuses, and jobs that give up.
    last_start_s: when the last job has started.
    idle_core_h: core-hours that jobs sleep, wait after a refusal, or keep their places for a limit's sake.
    idle_share: their part of all core-hours of the run.
    """

    name: str
    policy: str
    window_s: int
    mean_per_s: float | None
    peak_1s: int
    peak_100ms: int
    requests_peak_1s: int
    requests_peak_100ms: int
    refused: int
    failed: int | None
    last_start_s: float | None
    idle_core_h: float
    idle_share: float
    complete: bool
    requests: list[float] = field(repr=False)
    starts: list[float] = field(repr=False)

    def document(self) -> dict[str, Any]:
        """Everything but the times of single events."""
        return {key: value for key, value in vars(self).items() if key not in ("requests", "starts")}


def expect(name: str, herd: Herd, cores: float = 1.0, seed: int = 0) -> Expected:
    """Simulate a herd. Each of its jobs has so many cores."""
    outcome = simulate(herd, seed)
    repeats = max(1, min(MOST_REPEATS, REPEATED_JOBS // herd.jobs))
    alone = replace(herd, requests=0, limit=None)
    starts = [outcome.starts, *(simulate(alone, seed + number).starts for number in range(1, repeats))]
    peaks = [round(median(most_within(times, span) for times in starts)) for span in (1.0, 0.1)]
    idle_s = herd.asleep_s + outcome.waited_s + herd.kept_s
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
        refused=outcome.refused,
        failed=outcome.failed if outcome.complete else None,
        last_start_s=round(outcome.last_start_s, 2) if outcome.complete else None,
        idle_core_h=round(idle_s * cores / 3600, 2),
        idle_share=round(idle_s / all_s, 4) if all_s else 0.0,
        complete=outcome.complete,
        requests=outcome.requests,
        starts=outcome.starts,
    )


def mean_rate(herd: Herd) -> float | None:
    """Starts per second of the first wave, on average over the window; `uniform` has one more second to draw."""
    span = herd.window_s + (herd.policy == "uniform") if herd.window_s else 0.0
    if herd.dispatch_rate:
        span = max(span, herd.wave / herd.dispatch_rate)
    return round(herd.wave / span, 2) if span else None


@dataclass(frozen=True)
class StartPlan:
    """The policies side by side for one launch.

    herd: the launch as it is, or, without a file, with the defaults.
    rows: what to expect of each policy; that of `herd` is called `now`.
    recommended: settings, as the keys of a pipeline file.
    reason: why, in a sentence.
    steady_throttle: how many jobs the limit allows at once as they go on; None without a limit.
    """

    herd: Herd
    cores: float
    rows: list[Expected]
    now: str
    recommended: dict[str, Any]
    reason: str
    steady_throttle: int | None

    def row(self, name: str) -> Expected:
        """The row of a policy. Raises KeyError when there is none."""
        return {row.name: row for row in self.rows}[name]

    def document(self) -> dict[str, Any]:
        """What `stagger plan --json` prints of it."""
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
    """Whole seconds in which the first wave stays below 0.8 of the herd's limit; 0 when there is none."""
    return math.ceil(window_for_limit(herd.wave, herd.requests, herd.limit)) if herd.limit else 0


def start_plan(
    herd: Herd, tasks: int, *, cores: float = 1.0, counted: bool = False, other: int | None = None, seed: int = 0
) -> StartPlan:
    """Compare starting at once, both policies over the default window, that for the limit, and the herd's own.

    `counted`: whether a launch finds the herd's number of requests by itself, and so the same window for a limit.
    `other`: one more window to compare, in seconds.
    """
    window = auto_window(tasks)
    herds = {
        "none": replace(herd, policy="uniform", window_s=0),
        "uniform": replace(herd, policy="uniform", window_s=window),
        "spread": replace(herd, policy="spread", window_s=window),
    }
    if herd.limit:
        needed = limit_window(herd)
        hold_s = needed if herd.wave < herd.jobs else 0
        herds["limit"] = replace(herd, policy="spread", window_s=needed, hold_s=hold_s)
    if herd not in herds.values():
        herds["as set"] = herd
    now = next(name for name, each in herds.items() if each == herd)
    if other is not None and replace(herd, window_s=other) not in herds.values():
        herds["window"] = replace(herd, window_s=other)
    recommended, reason = recommend(herd, counted)
    return StartPlan(
        herd,
        cores,
        [expect(name, each, cores, seed) for name, each in herds.items()],
        now,
        recommended,
        reason,
        throttle_for_limit(herd.task_s, herd.requests, herd.limit) if herd.limit and herd.requests else None,
    )


def recommend(herd: Herd, counted: bool) -> tuple[dict[str, Any], str]:
    """The settings to take, as keys of a pipeline file, and why."""
    if herd.jobs == 1:
        return {"randomize_start_duration": 0}, "a single job meets nobody"
    if not herd.limit or not herd.requests:
        more = "no request goes to remote storage" if herd.limit else "with --limit the window follows from that"
        return {"start_policy": "spread"}, f"as even as a grid; {more}"
    if herd.dispatch_rate and herd.dispatch_rate * herd.requests <= LOAD * herd.limit:
        why = f"Slurm begins {herd.dispatch_rate:g} jobs a second, which ask for less than {LOAD} of the limit"
        return {"randomize_start_duration": 0}, why
    window = limit_window(herd)
    chosen: dict[str, Any] = {"start_policy": "spread"}
    chosen |= {"backend_limit": herd.limit} if counted else {"randomize_start_duration": window}
    steady = throttle_for_limit(herd.task_s, herd.requests, herd.limit)
    # Jobs that take turns keep their places only in a launch with a backend_limit; else they must be few enough.
    if window <= LONG_WINDOW_S and (counted or herd.wave == herd.jobs or herd.wave <= steady):
        why = f"{herd.wave:,} jobs with {herd.requests} requests each, in {window} s, are {LOAD} of the limit"
        if 2 * herd.requests > herd.limit:
            why += "; still two that start close together exceed it, and ask again"
        return chosen, why
    workers = max(1, min(math.floor(LONG_WINDOW_S * LOAD * herd.limit / herd.requests), steady))
    short = math.ceil(window_for_limit(workers, herd.requests, herd.limit))
    if not counted:
        chosen["randomize_start_duration"] = short
    if window > LONG_WINDOW_S:
        why = f"{herd.wave:,} jobs at once would have to sleep up to {window:,} s on their processors"
    else:
        why = f"{herd.wave:,} jobs of {herd.task_s:g} s that take turns would ask for more than the limit"
    why += f"; {workers:,} at once start within {short} s"
    return {**chosen, "executor": {"workers": workers}}, why


def first_wave(herd: Herd) -> list[float]:
    """When the jobs of the first wave start, in seconds, ascending."""
    return simulate(replace(herd, jobs=herd.wave, limit=None, requests=0)).starts


def summary(herd: Herd, cores: float) -> str:
    """The start of a launch in one line."""
    starts = first_wave(herd)
    who = f"{herd.jobs:,} jobs" if herd.wave == herd.jobs else f"the first {herd.wave:,} of {herd.jobs:,} jobs"
    if not herd.window_s:
        return f"{who} start at once"
    peaks = f"at most {most_within(starts, 1.0):,} in a second, {most_within(starts, 0.1):,} in 100 ms"
    hours = f"{herd.asleep_s * cores / 3600:,.1f} core-hours asleep"
    kept = f"; each keeps its place for {herd.hold_s} s at least" if herd.hold_s else ""
    return f"{who} start over {herd.window_s} s ({herd.policy}), {peaks}; {hours}{kept}"
