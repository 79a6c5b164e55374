"""The result of a launch."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagger.errors import RunFailed, counted
from stagger.ranks import format_ranks
from stagger.status.next_commands import cancel_stuck
from stagger.status.stage_status import StageStatus


@dataclass
class Launched:
    """The state of a run after a launch.

    submitted: whether submitted Slurm jobs are still to run.
    lost_outputs: paths of committed outputs that are missing or changed.
    unfinished: stage -> ranks that should have run here, but are neither done nor active.
    """

    run_dir: str
    stages: list[StageStatus] = field(default_factory=list)
    submitted: bool = False
    lost_outputs: list[str] = field(default_factory=list)
    unfinished: dict[str, list[int]] = field(default_factory=dict)

    @property
    def failed_ranks(self) -> dict[str, list[int]]:
        return {stage.name: stage.failed_ranks for stage in self.stages if stage.failed_ranks}

    @property
    def never_start(self) -> str:
        """Which ranks never start as they are, why, and what to do, as a clause; empty if there are none."""
        found = [(stage.name, why) for stage in self.stages for why in stage.waiting if why["starts"] == "never"]
        if self.submitted or not found:
            return ""
        ranks = "; ".join(f"{name}: {why['ranks']}, {why['reason']}: {why['message']}" for name, why in found)
        return (
            f"can never start as they are ({ranks}). Take them out of the queue with:"
            f" {cancel_stuck(self.run_dir, self.stages)}; then change what they request, as with: stagger retry"
            f" {self.run_dir} --set executor.KEY=VALUE"
        )

    def raise_if_failed(self) -> None:
        """Raise RunFailed, naming them, when outputs of completed ranks are lost, or ranks failed, can never start
        or are unfinished, outputs could not be published, or output files of a completed stage have different columns.
        """
        if self.lost_outputs:
            count = len(self.lost_outputs)
            raise RunFailed(
                f"{count} of the output files of completed ranks are missing or"
                f" changed: {self.lost_outputs[0]}{', ...' if count > 1 else ''}. Restore them, or make them again"
                f" with: stagger retry {self.run_dir} --lost",
                self.failed_ranks,
            )
        if self.failed_ranks:
            count = sum(map(len, self.failed_ranks.values()))
            worst = max((stage.errors[0] for stage in self.stages if stage.errors), key=lambda group: group["count"])
            share = "" if worst["count"] == count else f", {worst['count']:,} of them"
            raise RunFailed(
                f"{counted(count, 'rank')} of {self.run_dir} failed{share}: {worst['error']}; see more"
                f" with: stagger logs {self.run_dir} --failed; rerun them with: stagger retry {self.run_dir}"
                + (f". Other ranks {self.never_start}" if self.never_start else ""),
                self.failed_ranks,
            )
        if self.never_start:
            raise RunFailed(f"Ranks of {self.run_dir} {self.never_start}")
        if self.unfinished:
            names = "; ".join(f"{name}: {format_ranks(ranks)}" for name, ranks in self.unfinished.items())
            raise RunFailed(
                f"Ranks of {self.run_dir} were stopped before they were done ({names}); launch them again with:"
                f" stagger retry {self.run_dir}"
            )
        if failed := [stage.published for stage in self.stages if stage.is_unpublished]:
            raise RunFailed(
                f"All ranks are done, but outputs are {'; '.join(failed)}. Try again with: stagger retry {self.run_dir}"
            )
        if differing := [line for stage in self.stages if stage.differs for line in stage.schema_differences]:
            raise RunFailed(
                f"All ranks are done, but output files of one folder have different columns: {'; '.join(differing)}."
                " To have one schema, launch with these columns and a new run_dir; to allow the differences, set"
                " one_schema: false."
            )
