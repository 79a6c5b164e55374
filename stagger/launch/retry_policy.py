"""The automatic retry policy: which failed ranks to rerun, and with how much more memory or time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from stagger.rundir.launch_records import Group
from stagger.spec.executors import RetrySpec
from stagger.status.failed import Failed


@dataclass
class Decision:
    """`again`: the groups to launch now. `given_up`: rank -> why it is not retried."""

    again: list[Group] = field(default_factory=list)
    given_up: dict[int, str] = field(default_factory=dict)


def decide(retries: RetrySpec, failed: list[Failed]) -> Decision:
    """Apply a retry policy.

    >>> one = Failed(7, Group([7]), "OUT_OF_MEMORY", None)
    >>> decide(RetrySpec(), [one]).again
    [Group(ranks=[7], tries=1, memory_scale=2.0, time_scale=1.0)]
    """
    decision = Decision()
    groups: dict[tuple[int, float, float], list[int]] = defaultdict(list)
    for one in failed:
        if one.end not in retries.on:
            decision.given_up[one.rank] = f"{one.end} is not retried (retries.on)"
        elif one.tried.tries >= retries.max:
            decision.given_up[one.rank] = f"{one.end} after {one.tried.tries} retries (retries.max)"
        elif one.same_again:
            decision.given_up[one.rank] = f"the same error twice: {one.sentence}"
        else:
            memory = one.tried.memory_scale * (retries.memory_factor if one.end == "OUT_OF_MEMORY" else 1)
            time = one.tried.time_scale * (retries.time_factor if one.end == "TIMEOUT" else 1)
            groups[one.tried.tries + 1, memory, time].append(one.rank)
    decision.again = [Group(sorted(ranks), *scale) for scale, ranks in sorted(groups.items())]
    return decision
