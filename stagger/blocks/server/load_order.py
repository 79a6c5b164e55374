"""The order in which blocks are loaded, and the runs that loaded ones make. Pure."""

from __future__ import annotations


def runs(blocks: list[int]) -> list[range]:
    """Sorted block numbers, as ranges without gaps.

    >>> runs([1, 2, 3, 7, 8])
    [range(1, 4), range(7, 9)]
    """
    found: list[range] = []
    for block in blocks:
        if found and found[-1].stop == block:
            found[-1] = range(found[-1].start, block + 1)
        else:
            found.append(range(block, block + 1))
    return found


def load_order(window: range, served: tuple[int, int] | None, backwards: bool = False) -> list[int]:
    """The order of loading that extends `served` without gaps: forward from its end, then back from its start.

    Where nothing is served, `backwards` decides.

    >>> load_order(range(2, 8), (4, 6)), load_order(range(2, 4), None), load_order(range(2, 4), None, True)
    ([6, 7, 3, 2], [2, 3], [3, 2])
    """
    if served is None:
        return list(reversed(window) if backwards else window)
    return [*range(served[1], window.stop), *range(served[0] - 1, window.start - 1, -1)]
