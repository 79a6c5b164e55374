"""How the jobs of a Slurm stage start: their window, how long they hold their slots, and their load on the storage."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from stagger.errors import StaggerError, agreeing, counted
from stagger.plan.metadata import operations_per_start
from stagger.plan.registry_requests import serving_advice
from stagger.plan.requests import connections, requests_per_start, workers_of
from stagger.rundir.run_folder import StageInput
from stagger.slurm.answers import parse_time
from stagger.spec.executors import SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.start.account import most_within
from stagger.start.delays import (
    LONG_WINDOW_S,
    LONGEST_WINDOW_S,
    SCHEDULER_CYCLE_S,
    Load,
    Slots,
    auto_window,
    loads,
    share_of_limit,
    window_for_limit,
)
from stagger.terminal import duration, logger

if TYPE_CHECKING:
    from stagger.start.herd import Herd

#: A time limit that people take for hours and minutes.
MINUTES_SECONDS = re.compile(r"\d{1,2}:\d\d")


class SlurmStart:
    """Plans how the jobs of one stage start. Contacts neither Slurm nor the storage.

    Args:
        spec: the run.
        stage: the stage, whose executor is Slurm.
        planned: what the stage reads and writes.
    """

    def __init__(self, spec: RunSpec, stage: StageSpec, planned: StageInput) -> None:
        assert isinstance(stage.executor, SlurmSpec)
        self.spec = spec
        self.stage = stage
        self.input = planned
        self.settings = stage.executor

    def window(self, ranks: int) -> int:
        """Seconds over which the jobs of `ranks` ranks start.

        Raises StaggerError when the window is no shorter than the jobs' time limit, or longer than a day.
        """
        wanted = self.stage.randomize_start_duration
        needed = self.needed_window(ranks)
        window = (needed or auto_window(ranks)) if wanted == "auto" else wanted
        limit = self.settings.time_limit
        limit_s = parse_time(limit) if limit is not None else None
        if limit_s is not None and 0 < limit_s <= window:
            raise StaggerError(
                f"executor.time limits each job of {self.stage.name} to {limit_s} s, but a job may sleep up to {window}"
                " s before it starts: allow more time, or set a smaller randomize_start_duration or throttle"
                " (executor.workers)."
            )
        return window

    def needed_window(self, ranks: int) -> int:
        """Seconds over which the first wave must start to stay below the limits; 0 without one."""
        tightest = self.tightest(ranks)
        if tightest is None:
            return 0
        wave = min(self.jobs(ranks), self.settings.workers or ranks)
        window = math.ceil(min(window_for_limit(wave, tightest.each, tightest.limit), 1e12))
        if window > LONGEST_WINDOW_S:
            raise StaggerError(
                f"{tightest.key} {tightest.limit:g} would spread {counted(wave, 'start')} of {self.stage.name} over"
                f" {window:,} s, more than a day: set a smaller throttle (executor.workers), or a larger limit."
            )
        return window

    def tightest(self, ranks: int) -> Load | None:
        """The limit that needs the longest window; None without a limit."""
        found = loads(self.requests(ranks), self.limit, self.operations(ranks), self.stage.metadata_limit)
        return max(found, key=lambda load: load.each / load.limit, default=None)

    def jobs(self, ranks: int) -> int:
        """The number of jobs that run `ranks` ranks."""
        return math.ceil(ranks / self.settings.ranks_per_job)

    @property
    def cores(self) -> int:
        """Processors of a job; with `ranks_at_once: auto`, at most those of its ranks."""
        return self.settings.cpus_per_task * self.settings.most_at_once

    def requests(self, ranks: int) -> int:
        """Requests that a job makes as it starts."""
        return requests_per_start(self.spec, self.stage, self.input, self.share(ranks))

    def share(self, ranks: int) -> float:
        """Requests per second that each worker may make while the jobs of `ranks` ranks run; 0 without a limit."""
        if self.limit is None:
            return 0.0
        jobs = min(self.jobs(ranks), self.settings.workers or ranks)
        return share_of_limit(jobs, workers_of(self.stage), self.limit)

    def operations(self, ranks: int) -> int:
        """Metadata operations that a job makes as it starts."""
        return operations_per_start(self.settings, ranks)

    @property
    def limit(self) -> float | None:
        """Requests per second that the storage can take; None without a limit, or if a profile limits what the stage
        does not use.

        Raises StaggerError when the stage itself limits its requests but makes none.
        """
        if self.stage.backend_limit is None or requests_per_start(self.spec, self.stage, self.input):
            return self.stage.backend_limit
        if self.spec.of_profile(self.stage.name, "backend_limit"):
            return None
        raise StaggerError(
            f"backend_limit counts requests to remote storage, and {self.stage.name} makes none when it starts: its"
            " run_dir, input, output and models are local paths. Set randomize_start_duration instead."
        )

    def hold(self, ranks: int) -> int:
        """Seconds a job stays allocated after its start, so that jobs taking turns stay below the limit; 0 when nothing
        is throttled.
        """
        throttled = self.settings.workers is not None and self.settings.workers < self.jobs(ranks)
        return self.needed_window(ranks) if throttled else 0

    def herd(self, ranks: int) -> Herd:
        """The jobs of `ranks` ranks as a herd, to simulate their load on the storage."""
        from stagger.start.herd import START_JITTER_S, Herd

        return Herd(
            jobs=self.jobs(ranks),
            policy=self.stage.start_policy,
            window_s=self.window(ranks),
            requests=self.requests(ranks),
            workers=workers_of(self.stage),
            connections=connections(self.spec, self.stage, self.input),
            share=self.share(ranks),
            limit=self.limit,
            operations=self.operations(ranks),
            metadata_limit=self.stage.metadata_limit,
            throttle=self.settings.workers,
            jitter_s=START_JITTER_S,
            hold_s=self.hold(ranks),
            retry_s=self.spec.retry_seconds,
        )

    def summary(self, ranks: int) -> str:
        """One line about how `ranks` ranks will start."""
        from stagger.start.forecast import summary

        return summary(self.herd(ranks), self.cores)

    def slots(self, fingerprint: str, number: int, window_s: int, first: int, wave: int) -> Slots:
        """The start slots of an array whose first wave has `wave` jobs.

        `first` is the number of slots that earlier arrays of launch `number` take. Fingerprint and number give the
        salt, so that two launches draw different delays.
        """
        salt = zlib.crc32(f"{fingerprint} {number}".encode())
        return Slots(window_s, first, wave, min(window_s, SCHEDULER_CYCLE_S), salt)

    def advise(self, ranks: int) -> None:
        """Warn when a window is too short for `backend_limit`, or long enough to waste much allocated time, and when a
        time limit is probably meant as hours and minutes.
        """
        from stagger.start.forecast import first_wave

        time = self.settings.time_limit or ""
        if MINUTES_SECONDS.fullmatch(time):
            logger.warning(
                f"{self.stage.name}: the time limit {time} is {duration(parse_time(time) or 0)}, as Slurm reads it; for"
                f" hours and minutes write {time}:00"
            )
        window, needed, limit = self.window(ranks), self.needed_window(ranks), self.limit
        if limit is not None and (advice := serving_advice(self.spec, self.stage, limit)):
            logger.warning(advice)
        if limit is not None and window >= needed:
            most = most_within(first_wave(replace(self.herd(ranks), jitter_s=0.0)), 1.0)  # By the delays alone.
            requests = most * self.requests(ranks)
            if requests > limit:
                other = ": leave start_policy out" if self.stage.start_policy == "uniform" else ""
                logger.warning(
                    f"{self.stage.name}: up to {counted(most, 'job', 'starts')} within a second and"
                    f" {agreeing(most, 'makes')} {counted(requests, 'request')}; those beyond"
                    f" backend_limit are rejected and retried{other}"
                )
        tightest = self.tightest(ranks)
        if tightest is not None and window < needed:
            logger.warning(
                f"{self.stage.name}: starts over {window} s exceed 0.8 of {tightest.key}, which needs {needed} s:"
                " leave randomize_start_duration out, or set a smaller throttle (executor.workers)"
            )
        if window > LONG_WINDOW_S:
            logger.warning(
                f"{self.stage.name}: each job of the first wave sleeps {window / 2:.0f} s on average while it holds its"
                " processors; a throttle (executor.workers) or several launches with --begin (executor.sbatch) cost"
                " less"
            )
