"""Differences between measured throughputs that are noise. Pure.

Equal machines measure differently from one hour to the next. A planner that takes these differences for facts moves
servers for them, and loading costs more than the move gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stagger.blocks.placement.spans import Span

#: Throughputs whose ratio is below 1 + NOISE count as equal.
NOISE = 0.1


def is_noise(one: float, other: float) -> bool:
    """Whether two throughputs count as equal.

    >>> is_noise(100.0, 109.0), is_noise(100.0, 111.0)
    (True, False)
    """
    return max(one, other) < min(one, other) * (1 + NOISE)


def even(spans: Sequence[Span]) -> list[Span]:
    """The spans with the mean throughput of their class. A class reaches from its slowest server to NOISE above that.

    The sum of all throughputs stays the same.

    >>> [span.throughput for span in even([Span("a", 0, 1, 100.0), Span("b", 0, 1, 104.0), Span("c", 0, 1, 200.0)])]
    [102.0, 102.0, 200.0]
    """
    classes: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.throughput, span.server_id)):
        if classes and is_noise(classes[-1][0].throughput, span.throughput):
            classes[-1].append(span)
        else:
            classes.append([span])
    means: dict[str, float] = {}
    for one in classes:
        mean = sum(span.throughput for span in one) / len(one)
        means |= {span.server_id: mean for span in one}
    return [replace(span, throughput=means[span.server_id]) for span in spans]
