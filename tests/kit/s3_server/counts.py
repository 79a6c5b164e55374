"""Counts of requests and responses, peak rates, a log."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from tests.kit.s3_server.protocol import Request


class SlidingPeak:
    """The largest number of events within any `window` seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.recent: deque[float] = deque()
        self.peak = 0

    def add(self, now: float) -> None:
        recent = self.recent
        recent.append(now)
        while recent[0] <= now - self.window:
            recent.popleft()
        if len(recent) > self.peak:
            self.peak = len(recent)


class Stats:
    def __init__(self, now: float, log_size: int) -> None:
        self.since = now
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.seconds: Counter[int] = Counter()
        self.peaks = {"peak_1s": SlidingPeak(1.0), "peak_100ms": SlidingPeak(0.1)}
        self.windows = tuple(self.peaks.values())
        self.log: deque[tuple[str, str, str, int]] = deque(maxlen=log_size)
        self.bytes_in = 0
        self.bytes_out = 0

    def arrived(self, request: Request, now: float) -> None:
        self.requests[request.kind] += 1
        self.seconds[int(now - self.since)] += 1
        for window in self.windows:
            window.add(now)
        if request.plan.fault:
            self.faults[request.plan.fault] += 1

    def answered(self, request: Request, status: int) -> None:
        self.statuses[status] += 1
        self.log.append((request.kind, request.subject, request.headers.get("range", ""), status))

    def report(self) -> dict[str, Any]:
        return {
            "requests": dict(self.requests),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(self.faults),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            **{name: window.peak for name, window in self.peaks.items()},
            "per_second": [self.seconds[second] for second in range(max(self.seconds, default=-1) + 1)],
        }
