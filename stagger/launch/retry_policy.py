"""The retry policy: which failed ranks to rerun, with how much more memory or time, and which nodes to avoid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stagger.errors import counted
from stagger.rundir.launch_records import Group
from stagger.spec.executors import RetrySpec
from stagger.status.failed import Failed

#: Ends for which a node can be the reason. Of the others, a rank or its resources are.
OF_NODES = ("FAILED", "NODE_FAIL")

#: Ranks that must have failed on a node before it is suspected.
SEVERAL = 2


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
            decision.given_up[one.rank] = f"{one.end} after {counted(one.tried.tries, 'retry')} (retries.max)"
        elif one.same_again:
            decision.given_up[one.rank] = f"the same error twice: {one.sentence}"
        else:
            memory = one.tried.memory_scale * (retries.memory_factor if one.end == "OUT_OF_MEMORY" else 1)
            time = one.tried.time_scale * (retries.time_factor if one.end == "TIMEOUT" else 1)
            groups[one.tried.tries + 1, memory, time].append(one.rank)
    decision.again = [Group(sorted(ranks), *scale) for scale, ranks in sorted(groups.items())]
    return decision


def bad_nodes(failed: Iterable[Failed], succeeded: Mapping[str, int]) -> dict[str, list[Failed]]:
    """The nodes that are the reason why ranks failed, each with those ranks. `succeeded` counts done ranks by node.

    On such a node several ranks failed in the same way, and more than succeeded there (any number, if Python
    did not start), while no rank failed in this way on a node that works. A rank that fails everywhere is not the
    node's fault.
    """
    ways: dict[tuple[str | None, ...], dict[str, list[Failed]]] = defaultdict(lambda: defaultdict(list))
    for one in failed:
        if one.node is not None and one.end in OF_NODES and not _followed(one):
            ways[_way(one)][one.node].append(one)
    bad: dict[str, list[Failed]] = defaultdict(list)
    for way, nodes in ways.items():
        if all(len(ranks) >= max(SEVERAL, succeeded.get(node, 0) + 1 if way else 0) for node, ranks in nodes.items()):
            for node, ranks in nodes.items():
                bad[node] += ranks
    return dict(bad)


def avoid(
    avoided: Sequence[str], failed: Iterable[Failed], succeeded: Mapping[str, int], *, untried: bool
) -> tuple[list[str], dict[str, list[Failed]]]:
    """The nodes, of those `avoided` by the latest launch, that the next one still avoids, and the newly bad ones.

    No node becomes bad unless others are left: some on which ranks have succeeded or, for the first bad node, `untried`
    ones. If ranks fail on other nodes as well, and none has succeeded anywhere, no node is to blame.
    """
    working = {node: count for node, count in succeeded.items() if node not in avoided}
    bad = bad_nodes((one for one in failed if one.node not in avoided), working)
    if working.keys() - bad or (untried and not avoided and len(bad) == 1):
        return list(avoided), bad
    return ([] if bad and not working else list(avoided)), {}


def _way(one: Failed) -> tuple[str | None, ...]:
    """How a rank failed: the kind and the step of its error; empty if Python did not start."""
    return () if one.failure is None else (one.failure["kind"], one.failure.get("step"))


def _followed(one: Failed) -> bool:
    """Whether a rank failed with the same error on another node before."""
    return one.same_again and one.before is not None and one.before.get("host") != one.node
