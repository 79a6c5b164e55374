"""The commands to type next, by the status of a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from stagger.status.stage_status import StageStatus

#: Most characters of a list of ranks within a command.
SHOWN = 60


def next_commands(run_dir: str, stages: Sequence[StageStatus]) -> list[tuple[str, str]]:
    """Each command to type next, and what it does; none for a run that is done."""
    found, run = [], shlex.quote(run_dir)
    if any(stage.failed for stage in stages):
        found.append((f"stagger logs {run} --failed", "tracebacks and logs"))
    if any(stage.stuck for stage in stages):
        found.append((cancel_stuck(run_dir, stages), "take it out of the queue"))
        found.append((f"stagger retry {run} --set executor.KEY=VALUE", "with other requests"))
    elif any(stage.failed for stage in stages):
        found.append((f"stagger retry {run}", "once the cause is mended"))
    if any(stage.lost for stage in stages):
        found.append((f"stagger retry {run} --lost", "make them again"))
    if found:
        return found
    if any(stage.active or stage.end.get("state") in ("waiting", "running") for stage in stages):
        return [(f"stagger status {run} --watch", "follow it")]
    if not all(stage.is_done for stage in stages):
        return [(f"stagger retry {run}", "launch what is not done")]
    return []


def cancel_stuck(run_dir: str, stages: Sequence[StageStatus]) -> str:
    """The command that cancels the ranks which never start; for ranks of several stages, or many, the whole run."""
    run = shlex.quote(run_dir)
    stuck = [stage for stage in stages if stage.stuck]
    ranks = ",".join(why["ranks"] for why in stuck[0].waiting if why["starts"] == "never")
    if len(stuck) > 1 or len(ranks) > SHOWN:
        return f"stagger cancel {run}"
    only = f" --stage {stuck[0].name}" if len(stages) > 1 else ""
    return f"stagger cancel {run}{only} --rank {ranks}"
