"""The state of a run as a script or a notebook reads it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from stagger.errors import counted, one_line
from stagger.ranks import parse_ranks
from stagger.status.stage_status import StageStatus

#: The states of a rank, in the order shown.
STATES = ("done", "running", "sleeping", "requeued", "pending", "failed")


@dataclass(frozen=True)
class FailedRanks:
    """Ranks that failed for one reason.

    ranks: ascending.
    sentence: the error of the first of them.
    where: the line of the user's code that raised it, as `steps.py:14`; empty if there is none.
    """

    ranks: tuple[int, ...]
    sentence: str
    where: str


@dataclass(frozen=True)
class WaitingRanks:
    """Pending ranks that do not start soon: the id of their job, Slurm's reason, and what it means.

    starts: `never` as the job is, `by hand` once somebody has acted, or `later` by itself.
    """

    ranks: tuple[int, ...]
    job_id: str
    reason: str
    starts: str
    message: str


@dataclass(frozen=True)
class StageState:
    """The state of a stage. Each rank counts once: done + running + sleeping + requeued + pending + failed == tasks.

    tasks: the number of ranks; 0 while it is undecided, which `undecided` says in words.
    sleeping: ranks in the delay of their staggered start.
    requeued: ranks whose job ran before and waits to start again.
    cancelled: of the pending ranks, those that a user cancelled.
    unknown: of the pending ranks, those that may be running: Slurm does not say.
    lost: of the failed ranks, those whose job ended without any record.
    failures: the failed ranks by reason, the largest group first.
    waiting: why pending ranks do not start by themselves.
    dropped: the reasons for which steps dropped documents -> their number.
    counts: what steps counted with `stagger.count`.
    steps: what each step did, counted and measured, as `stagger status --json` shows it.
    eta_s: seconds that are left at the rate so far; None if unknown.
    lost_outputs: with `verify`, the number of output files of done ranks that are missing or changed.
    lost_ranks: with `verify`, the done ranks that they belong to.
    foreign: with `verify`, the files with names of outputs that the run has not written, a phrase for each folder.
    differences: a sentence for each column that differs between the files of an output folder.
    published: where the outputs are published, or why they are not; empty if they are not to be.
    end: what the end of the stage did or waits for; empty if there is nothing to report.
    active: whether ranks are queued or running, or the end job, which can start more.
    """

    name: str
    tasks: int
    undecided: str
    done: int
    running: int
    sleeping: int
    requeued: int
    pending: int
    failed: int
    cancelled: int
    unknown: int
    lost: int
    failed_ranks: tuple[int, ...]
    failures: tuple[FailedRanks, ...]
    waiting: tuple[WaitingRanks, ...]
    records_in: int
    records_out: int
    bytes_out: int
    dropped: Mapping[str, int]
    counts: Mapping[str, int]
    steps: tuple[Mapping[str, Any], ...]
    bad_records: Mapping[str, int]
    left_out: Mapping[str, int]
    records_per_s: float | None
    eta_s: float | None
    output_folders: tuple[str, ...]
    lost_outputs: int
    lost_ranks: tuple[int, ...]
    foreign: tuple[str, ...]
    differences: tuple[str, ...]
    published: str
    end: str
    active: bool

    @classmethod
    def of(cls, stage: StageStatus) -> StageState:
        return cls(
            **{key: getattr(stage, key) for key in ("name", "tasks", "undecided", *STATES, "cancelled", "unknown")},
            lost=sum(count for reason, count in stage.reasons.items() if reason.split(" ")[0] == "lost"),
            failed_ranks=tuple(stage.failed_ranks),
            failures=tuple(
                FailedRanks(tuple(parse_ranks(group["ranks"])), group["sentence"], group["where"])
                for group in stage.errors
            ),
            waiting=tuple(
                WaitingRanks(
                    tuple(parse_ranks(why["ranks"])), why["job_id"], why["reason"], why["starts"], why["message"]
                )
                for why in stage.waiting
            ),
            records_in=stage.records_in,
            records_out=stage.records_out,
            bytes_out=stage.bytes_out,
            dropped=dict(stage.dropped),
            counts=dict(stage.counts),
            steps=tuple(stage.steps),
            bad_records=dict(stage.bad_records),
            left_out=dict(stage.left_out),
            records_per_s=stage.records_per_s,
            eta_s=stage.eta_s,
            output_folders=tuple(stage.output_folders),
            lost_outputs=stage.lost.get("files", 0),
            lost_ranks=tuple(parse_ranks(stage.lost.get("ranks", ""))),
            foreign=tuple(stage.foreign),
            differences=tuple(stage.schema_differences),
            published=stage.published,
            end=stage.end.get("message", ""),
            active=stage.is_active,
        )

    @property
    def complete(self) -> bool:
        """Whether every rank is done."""
        return not self.undecided and self.done == self.tasks

    @property
    def remarks(self) -> Iterator[str]:
        """What a person must know besides the numbers, one line each."""
        for one in self.failures:
            where = f" ({one.where})" if one.where else ""
            yield f"{len(one.ranks):,} x {one.sentence}{where}"
        for why in self.waiting:
            yield f"waiting: {why.reason}: {why.message}"
        if self.cancelled:
            yield f"{self.cancelled:,} cancelled"
        if self.unknown:
            yield f"{self.unknown:,} unknown"
        if self.lost_outputs:
            yield f"{counted(self.lost_outputs, 'output file', 'is')} missing or changed"
        for files in self.foreign:
            yield f"not written by this run, although named as its outputs: {files}"
        yield from self.differences
        if self.end:
            yield f"end: {self.end}"


@dataclass(frozen=True, repr=False)
class RunStatus:
    """The state of a run at one moment: `status["filter"]` is that of a stage.

    notes: what could not be found out, and why.
    """

    run_dir: str
    stages: tuple[StageState, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, run_dir: str, stages: Sequence[StageStatus]) -> RunStatus:
        notes = dict.fromkeys(note for stage in stages for note in stage.notes)
        return cls(run_dir, tuple(map(StageState.of, stages)), tuple(notes))

    def __getitem__(self, stage: str) -> StageState:
        """The state of one stage. Raises KeyError when there is none of this name."""
        return {one.name: one for one in self.stages}[stage]

    @property
    def tasks(self) -> int:
        """The number of ranks of all stages."""
        return sum(stage.tasks for stage in self.stages)

    @property
    def done(self) -> int:
        """The number of ranks that are done."""
        return sum(stage.done for stage in self.stages)

    @property
    def failed(self) -> int:
        """The number of ranks that failed."""
        return sum(stage.failed for stage in self.stages)

    @property
    def complete(self) -> bool:
        """Whether every rank of every stage is done."""
        return all(stage.complete for stage in self.stages)

    @property
    def active(self) -> bool:
        """Whether anything of the run is queued, running or about to start."""
        return any(stage.active for stage in self.stages)

    def __repr__(self) -> str:
        lines = [f"{self.run_dir}: {self.done:,} of {counted(self.tasks, 'rank', 'is')} done"]
        width = max(len(stage.name) for stage in self.stages)
        for stage in self.stages:
            states = ", ".join(f"{count:,} {state}" for state in STATES if (count := getattr(stage, state)))
            lines.append(f"  {stage.name:<{width}}  {states}")
            lines += [f"  {'':<{width}}  {remark}" for remark in stage.remarks]
        return "\n".join(map(one_line, [*lines, *self.notes]))

    def _repr_html_(self) -> str:
        """A table for notebooks, with a row for each stage."""
        columns = ("stage", "ranks", *STATES, "records out", "written")
        rows = [
            (
                stage.name,
                *(f"{count:,}" for count in (stage.tasks, *(getattr(stage, state) for state in STATES))),
                f"{stage.records_out:,}",
                decimal(stage.bytes_out),
            )
            for stage in self.stages
        ]
        remarks = [f"{stage.name}: {remark}" for stage in self.stages for remark in stage.remarks]
        return (
            f"<table><caption>{_text(self.run_dir)}</caption><thead><tr>{_cells(columns, 'th')}</tr></thead><tbody>"
            + "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
            + "</tbody></table>"
            + (f"<ul>{_cells((*remarks, *self.notes), 'li')}</ul>" if remarks or self.notes else "")
        )


def _cells(texts: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{_text(text)}</{tag}>" for text in texts)


def _text(text: str) -> str:
    return html.escape(one_line(text))
