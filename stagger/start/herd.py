"""A seeded discrete-event simulation of a herd of jobs that start, and of storage with a limit on requests per second.

The delays are those of delays.py; tests verify that the job script's are equal. Rejected requests are retried as in
stagger/storage/retry.py. The storage is a token bucket that holds one second's worth of requests.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from stagger.backoff import full_jitter
from stagger.start.delays import SCHEDULER_CYCLE_S, Load, Slots, StartPolicy, loads, slot_ms, uniform_delay

#: Width of a bin of `Calendar`, in seconds. Events within a bin are handled in the order in which they were scheduled.
BIN_S = 0.01

#: Seconds by which the beginnings of job scripts vary, if nothing else is known: Slurm starts jobs in rounds, and nodes
#: begin hundreds of scripts unevenly. It makes delays as even as a grid nearly random. On the test cluster, with 1000
#: jobs, it was 2 to 4 s (docs/staggered-start.md).
START_JITTER_S = 2.0

#: A simulation stops after this many rejected requests: the storage is hopelessly overloaded, and only gets worse.
MOST_REFUSED = 250_000

#: A simulation also stops after this many requests: those of five policies fit into 1 GB.
MOST_REQUESTS = 5_000_000


@dataclass(frozen=True)
class Herd:
    """The jobs that start, and the conditions that they meet. Times in seconds, rates per second.

    jobs: number of jobs.
    policy, window_s: how their delays are chosen.
    requests: requests that each job makes at its start.
    workers: ranks that a job runs at once; its requests are theirs together.
    connections: requests that each of them has in flight.
    share: requests per second that each of them may make beside one in flight, by a backend_limit; 0 for any number.
    limit: requests per second that the storage accepts; None for any number.
    operations: metadata operations that each job makes at its start: file-system calls that name a path.
    metadata_limit: metadata operations per second that the file system takes, which makes the others wait.
    throttle: maximum number of jobs at once, set in Slurm; under `spread` only the first wave takes the window.
    slots: maximum number of jobs at once for which the cluster has room; every job takes the window.
    dispatch_rate: jobs per second that Slurm starts; None for all in the same instant.
    jitter_s: how much later than that the script of a job may begin: each by another, random part of it.
    task_s: how long a job runs after its start; hold_s: how long it holds its slot at least.
    latency_s: how long the storage takes to answer.
    cycle_s: a job that has ended is replaced at the next multiple of this.
    retry_s: how long a rejected request is retried.
    """

    jobs: int
    policy: StartPolicy
    window_s: int
    requests: int = 4
    limit: float | None = None
    operations: int = 0
    metadata_limit: float | None = None
    throttle: int | None = None
    slots: int | None = None
    dispatch_rate: float | None = None
    jitter_s: float = 0.0
    task_s: float = 600.0
    hold_s: int = 0
    latency_s: float = 0.05
    cycle_s: float = SCHEDULER_CYCLE_S
    retry_s: float = 600.0
    workers: int = 1
    connections: int = 1
    share: float = 0.0

    @property
    def together(self) -> int:
        """Requests that a job makes in the same moment."""
        return self.workers * (1 if self.share else self.connections)

    @property
    def gap_s(self) -> float:
        """Seconds between two such moments."""
        return min(self.latency_s, 1 / self.share) if self.share else self.latency_s

    @property
    def loads(self) -> list[Load]:
        """What each job asks for at its start, of all that is limited."""
        return loads(self.requests, self.limit, self.operations, self.metadata_limit)

    @property
    def wave(self) -> int:
        """Number of jobs in the first wave."""
        return min(self.jobs, self.throttle or self.jobs)

    @property
    def later_s(self) -> int:
        """The window of jobs that start after others have ended."""
        return self.window_s if self.policy == "uniform" else min(self.window_s, SCHEDULER_CYCLE_S)

    @property
    def asleep_s(self) -> float:
        """Expected seconds that all jobs together sleep."""
        return (self.wave * self.window_s + (self.jobs - self.wave) * self.later_s) / 2

    @property
    def kept_s(self) -> float:
        """Seconds that all jobs together hold their slots after their work is done."""
        return self.jobs * max(0.0, self.hold_s - self.task_s)

    @property
    def at_once(self) -> int:
        """Maximum number of jobs at any time."""
        return min(self.wave, self.slots or self.jobs)


@dataclass
class Outcome:
    """The result of a simulation. Times in seconds since the first job began, in ascending order.

    starts: when each job's delay ended.
    requests: when each request was made, including rejected ones.
    refused: number of rejected requests.
    failed: number of jobs with a request that was rejected for more than `retry_s`.
    last_start_s: when the last job had finished the requests of its start.
    waited_s: seconds that all jobs together waited after rejected requests.
    complete: whether the simulation ran to its end.
    """

    starts: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    last_start_s: float = 0.0
    waited_s: float = 0.0
    complete: bool = True


def delays(herd: Herd, random: Random) -> list[float]:
    """Every job's delay in seconds, as its job script would compute it."""
    if herd.policy == "uniform":
        bits: Callable[[], int] = lambda: random.getrandbits(32)  # noqa: E731
        return [float(uniform_delay(herd.window_s, bits)) for _ in range(herd.jobs)]
    slots = Slots(herd.window_s, 0, herd.wave, herd.later_s, random.getrandbits(32))
    return [slot_ms(slots, index) / 1000 for index in range(herd.jobs)]


class Calendar:
    """Jobs by the time of their next event: a queue of bins, cheaper than a heap of a million events."""

    def __init__(self) -> None:
        self.bins: dict[int, list[int]] = {}
        self.order: list[int] = []

    def put(self, time: float, job: int) -> None:
        number = int(time / BIN_S)
        found = self.bins.get(number)
        if found is not None:
            found.append(job)
        else:
            self.bins[number] = [job]
            heapq.heappush(self.order, number)

    def take(self) -> list[int]:
        """Remove and return the jobs of the earliest bin. Jobs put into this bin later come with the next call."""
        return self.bins.pop(heapq.heappop(self.order))


#: In place of its remaining requests: the job has finished the requests of its start, and runs.
RUNNING = -1


def simulate(herd: Herd, seed: int = 0) -> Outcome:
    """Simulate a herd from the moment when Slurm starts its first job until the last job has started."""
    random = Random(seed)  # noqa: S311 # Seeded: every call must give the same result.
    delay = delays(herd, random)
    outcome = Outcome()
    calendar = Calendar()
    at = [0.0] * herd.jobs
    left = [herd.requests] * herd.jobs
    refusals = [0] * herd.jobs
    since: list[float | None] = [None] * herd.jobs
    gap = 1 / herd.dispatch_rate if herd.dispatch_rate else 0.0
    rate = herd.limit or math.inf
    most = max(1.0, rate)
    tokens, filled = most, 0.0
    begun, last_begin = 0, -gap
    put, asked = calendar.put, outcome.requests.append  # The loop below runs millions of times.
    gap_s, jobs, together, jitter_s = herd.gap_s, herd.jobs, herd.together, herd.jitter_s

    def begin(now: float) -> None:
        """Start the next job, but no faster than at `dispatch_rate`."""
        nonlocal begun, last_begin
        last_begin = max(now, last_begin + gap)
        at[begun] = last_begin + delay[begun] + (random.uniform(0.0, jitter_s) if jitter_s else 0.0)
        outcome.starts.append(at[begun])
        put(at[begun], begun)
        begun += 1

    for _ in range(herd.at_once):
        begin(0.0)
    while calendar.order:
        for job in calendar.take():
            now = at[job]
            if left[job] == RUNNING:
                if begun < jobs:
                    begin(math.ceil(now / herd.cycle_s) * herd.cycle_s)
                continue
            if left[job]:
                if now > filled:
                    tokens += (now - filled) * rate
                    filled = now
                    if tokens > most:
                        tokens = most
                # A job that has been refused goes on with one request.
                count = 1 if together == 1 or refusals[job] else min(together, left[job])
                accepted = count if tokens >= count else int(tokens)
                for _ in range(accepted):
                    asked(now)
                tokens -= accepted
                left[job] -= accepted
                if accepted < count:
                    asked(now)
                    outcome.refused += 1
                    first = since[job]
                    since[job] = first = now if first is None else first
                    wait = full_jitter(refusals[job], random)
                    refusals[job] += 1
                    if now + wait - first <= herd.retry_s:
                        outcome.waited_s += wait
                        at[job] = now + herd.latency_s + wait
                        put(at[job], job)
                        continue
                    outcome.failed += 1
                    left[job] = 0
                else:
                    if refusals[job]:
                        refusals[job], since[job] = 0, None
                    now += gap_s
            if left[job]:
                at[job] = now
                put(now, job)
                continue
            outcome.last_start_s = max(outcome.last_start_s, now)
            if begun < jobs:  # Another job waits for its slot.
                left[job] = RUNNING
                at[job] = now + max(herd.task_s, herd.hold_s)
                put(at[job], job)
        if outcome.refused > MOST_REFUSED or len(outcome.requests) > MOST_REQUESTS:
            outcome.complete = False
            break
    outcome.starts.sort()
    outcome.requests.sort()
    return outcome


def metadata_waits(starts: Sequence[float], operations: int, limit: float | None) -> tuple[float, float]:
    """How long a file system that takes `limit` metadata operations a second makes jobs wait, and when it has answered.

    Both in seconds; the first is the sum over all jobs. `starts` ascend. The file system works on one start after
    another, as fast as it can: the last answer comes at this time in whatever order it works.
    """
    if not limit or not operations:
        return 0.0, 0.0
    waited_s = free_s = 0.0
    for start in starts:
        free_s = max(free_s, start) + operations / limit
        waited_s += free_s - start
    return waited_s, free_s
