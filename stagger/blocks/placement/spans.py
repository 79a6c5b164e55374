"""Servers and their spans of blocks. Pure, and without numpy: a launch reads the records of servers, too."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from stagger.errors import counted


class ServerState(enum.IntEnum):
    """State of a server. JOINING servers count as hosts, since they will serve before the next one has loaded."""

    OFFLINE = 0
    JOINING = 1
    ONLINE = 2


@dataclass(frozen=True)
class Span:
    """Blocks `start` to `end` - 1, hosted by one server, each at `throughput` requests per second."""

    server_id: str
    start: int
    end: int
    throughput: float
    state: ServerState = ServerState.ONLINE

    @property
    def length(self) -> int:
        return self.end - self.start


def hosting(spans: Iterable[Span], total_blocks: int, min_state: ServerState = ServerState.JOINING) -> list[Span]:
    """The spans of servers that have reached `min_state`, in order of server id.

    Raises ValueError when a span is empty or exceeds the model.
    """
    hosts = [span for span in spans if span.state >= min_state]
    hosts.sort(key=attrgetter("server_id"))
    for span in hosts:
        if not 0 <= span.start < span.end <= total_blocks:
            raise ValueError(
                f"server {span.server_id} hosts blocks {span.start} to {span.end} of a model of"
                f" {counted(total_blocks, 'block')}"
            )
    return hosts
