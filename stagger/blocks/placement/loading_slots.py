"""Which servers may load now, so that the shared store gives its bandwidth to the first copy of the model. Pure.

Servers that start together and load together share the store's bandwidth: all blocks arrive late, and at the same time.
If they load in the order of their claims, the servers that complete the first copy of the model are done when the
others begin. Both load everything in about the same time. Source: this project; docs/block-placement.md measures it.

The claims in the registry are the queue: no other file is needed. A server that dies gives up its slot when its lease
ends, like its blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Slots = Literal["auto"] | int

#: A server that is next looks again after this many seconds; one with i turns ahead after 2^i times as many, up to
#: LONGEST_LOOK_S. With k slots about 2 k servers look per second, however many wait.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 15.0

#: Seconds after which a server loads although the servers ahead of it have not: one of them may hang for ever.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Loader:
    """A server that has not loaded all blocks of `span`, which it claimed with claim number `claim`."""

    claim: int
    server_id: str
    span: range

    @property
    def order(self) -> tuple[int, str]:
        """One claim may move several servers: those follow one another by their ids."""
        return self.claim, self.server_id


def ahead_of(loader: Loader, loaders: Iterable[Loader]) -> list[Loader]:
    """The servers that load by earlier claims, in order."""
    return sorted((other for other in loaders if other.order < loader.order), key=lambda other: other.order)


def turns_ahead(
    loader: Loader, ahead: Collection[Loader], slots: Slots, *, total_blocks: int, served: Collection[range]
) -> int:
    """How many times all slots have to be used before a server may load; 0 if it may load now.

    With `slots` = k, k servers load at a time: k is best floor(bandwidth of the store / bandwidth of a node).

    `auto` needs neither. While the servers ahead bring blocks that nobody serves yet, only those load that have a part
    in the first copy (`first_copy`), which gets the whole store. Then as many load as together have the blocks of one
    copy, or of all copies that are served, if there are more: so their number doubles with each round, which costs
    little where the store is faster than all nodes. `served`: what each server serves now.

    >>> one, two, other = Loader(1, "a", range(4)), Loader(2, "b", range(4, 8)), Loader(3, "c", range(4))
    >>> [turns_ahead(other, [one, two], slots, total_blocks=8, served=[]) for slots in (1, 2, 3, "auto")]
    [2, 1, 0, 2]
    >>> turns_ahead(two, [one], "auto", total_blocks=8, served=[])
    0
    >>> turns_ahead(other, [one, two], "auto", total_blocks=8, served=[range(8), range(8)])
    0
    """
    if slots != "auto":
        return len(ahead) // slots
    missing = set(range(total_blocks)).difference(*served)
    together = sum(len(other.span) for other in ahead)
    if missing.intersection(block for other in ahead for block in other.span):
        copy = first_copy([*ahead, loader], missing)
        return 0 if loader.server_id in copy.backwards else 1 + together // total_blocks
    return together // max(total_blocks, sum(map(len, served)))


@dataclass
class FirstCopy:
    """How servers load the blocks that nobody serves yet.

    `place`: block -> how many such blocks its server has loaded once it has loaded this one. `backwards`: server that
    has a part in the first copy -> whether it loads from the end of its span on.
    """

    place: dict[int, int] = field(default_factory=dict)
    backwards: dict[str, bool] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The largest place: all blocks are served when that many have been loaded side by side."""
        return max(self.place.values(), default=0)

    def joined_by(self, loader: Loader, missing: Collection[int], backwards: bool) -> dict[int, int]:
        """The places with one more server."""
        wanted = [block for block in loader.span if block in missing]
        own = {block: place for place, block in enumerate(reversed(wanted) if backwards else wanted, 1)}
        return self.place | {block: min(place, self.place.get(block, place)) for block, place in own.items()}


def first_copy(loaders: Sequence[Loader], missing: Collection[int]) -> FirstCopy:
    """Which servers load the `missing` blocks, of those that load in this order.

    A server has a part if it brings a block that the servers before it do not, or if the last block is there earlier
    with it: it then loads the other end of a long span. Each loads in the direction in which its blocks are there
    earlier. So the longest span takes little longer than an even division of the blocks.

    >>> loaders = [Loader(1, "a", range(8)), Loader(2, "b", range(8, 10)), Loader(3, "c", range(3, 8))]
    >>> copy = first_copy(loaders, range(10))
    >>> copy.backwards, [copy.place[block] for block in range(10)]
    ({'a': False, 'b': False, 'c': True}, [1, 2, 3, 4, 4, 3, 2, 1, 1, 2])
    """
    copy = FirstCopy()
    for loader in loaders:
        ways = {backwards: copy.joined_by(loader, missing, backwards) for backwards in (False, True)}
        backwards = min(ways, key=lambda way: max((ways[way].get(block, 0) for block in loader.span), default=0))
        place = ways[backwards]
        if len(place) > len(copy.place) or max(place.values(), default=0) < copy.last:
            copy.place = place
            copy.backwards[loader.server_id] = backwards
    return copy


def loads_backwards(
    loader: Loader, ahead: Sequence[Loader], slots: Slots, *, total_blocks: int, served: Collection[range]
) -> bool:
    """Whether a server that may load begins at the end of its span: with `auto`, where the others come last."""
    if slots != "auto":
        return False
    missing = set(range(total_blocks)).difference(*served)
    return first_copy([*ahead, loader], missing).backwards.get(loader.server_id, False)


def look_delay(turns: int) -> float:
    """Seconds until a server that waits for `turns` turns looks again.

    >>> look_delay(1), look_delay(3), look_delay(64)
    (1.0, 4.0, 15.0)
    """
    return min(LONGEST_LOOK_S, FIRST_LOOK_S * 2.0 ** (min(turns, 10) - 1))
