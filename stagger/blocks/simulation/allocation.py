"""What a central scheduler sees and decides: the competitors' allocations have this form. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Resource:
    """A server as a central scheduler sees it: room for blocks, block passes per second, and the span it hosts."""

    server_id: str
    room: int
    passes: float
    span: range

    def over(self, span: range) -> float:
        """Requests per second of each block of a span."""
        return self.passes / len(span)


#: From all servers, the number of blocks, whether a server has come or gone since the last call, and a source of random
#: numbers: server id -> new window, for each server that should move.
Allocate = Callable[[Sequence[Resource], int, bool, np.random.Generator], dict[str, range]]


def throughputs(servers: Iterable[Resource], spans: Mapping[str, range], total_blocks: int) -> NDArray[np.float64]:
    """Requests per second of each block, if the servers host these spans; those without a span host nothing."""
    found = np.zeros(total_blocks)
    for server in servers:
        if span := spans.get(server.server_id):
            found[span.start : span.stop] += server.over(span)
    return found


def moves(servers: Iterable[Resource], spans: Mapping[str, range]) -> dict[str, range]:
    """The spans that differ from what the servers host."""
    return {one.server_id: spans[one.server_id] for one in servers if spans.get(one.server_id, one.span) != one.span}
