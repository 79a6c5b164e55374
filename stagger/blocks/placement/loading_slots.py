"""Which servers may load now, so that the shared store gives its bandwidth to the first copy of the model. Pure.

Servers that start together and load together share the store's bandwidth: all blocks arrive late, and at the same time.
If they load in the order of their claims, the servers that complete the first copy of the model are done when the
others begin. Both load everything in about the same time. Source: this project; docs/block-placement.md measures it.

The claims in the registry are the queue: no other file is needed. A server that dies gives up its slot when its lease
ends, like its blocks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

#: The first server that waits looks again after this many seconds; a server with i times as many ahead after 2^i times
#: as many, up to LONGEST_LOOK_S. With k slots about 2 k servers look per second, however many wait.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 15.0

#: Seconds after which a server loads although the servers ahead of it have not: one of them may hang for ever.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Loader:
    """A server that lacks `blocks` of the blocks of its span, which it claimed with claim number `claim`."""

    claim: int
    server_id: str
    blocks: int


def ahead_of(local_id: str, loaders: Collection[Loader]) -> list[Loader]:
    """The servers whose claims are earlier than that of `local_id`. Empty when it does not load.

    One claim may move several servers: those are in the order of their ids.
    """
    mine = next((loader for loader in loaders if loader.server_id == local_id), None)
    if mine is None:
        return []
    order = mine.claim, mine.server_id
    return sorted(
        (loader for loader in loaders if (loader.claim, loader.server_id) < order),
        key=lambda loader: (loader.claim, loader.server_id),
    )


def turns_ahead(ahead: Collection[Loader], slots: Literal["auto"] | int, *, total_blocks: int, served: int) -> int:
    """How many times all slots have to be used before a server may load; 0 if it may load now.

    With `slots` = k, k servers load at a time: k is best floor(bandwidth of the store / bandwidth of a node).
    `auto` needs neither: the servers that load lack as many blocks as one copy of the model, or as many as all servers
    serve now (`served`), if those are more. So the first copy gets the whole store, and the number of loading servers
    doubles with each round, which costs little where the store is faster than all nodes.

    >>> ahead = [Loader(1, "a", 20), Loader(2, "b", 20)]
    >>> [turns_ahead(ahead, slots, total_blocks=40, served=0) for slots in (1, 2, 3, "auto")]
    [2, 1, 0, 1]
    >>> turns_ahead(ahead, "auto", total_blocks=40, served=80)
    0
    """
    if slots == "auto":
        return sum(loader.blocks for loader in ahead) // max(total_blocks, served)
    return len(ahead) // slots


def look_delay(turns: int) -> float:
    """Seconds until a server that waits for `turns` turns looks again.

    >>> look_delay(1), look_delay(3), look_delay(64)
    (1.0, 4.0, 15.0)
    """
    return min(LONGEST_LOOK_S, FIRST_LOOK_S * 2.0 ** (min(turns, 10) - 1))
