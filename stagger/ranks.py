"""Sets of ranks as people and scripts write them: `0-7999`, `3,17,40-52`."""

from __future__ import annotations

from collections.abc import Iterable

from stagger.errors import agreeing, counted, plural

#: The most ranks of a stage.
MOST = 10_000_000


def format_ranks(ranks: Iterable[int]) -> str:
    """Format a set of ranks as the shortest text.

    >>> format_ranks([0, 1, 2, 7, 9, 8])
    '0-2,7-9'
    """
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)


def named_ranks(ranks: Iterable[int] | str, verb: str = "") -> str:
    """Ranks in a sentence. `verb` is in the third person.

    >>> named_ranks([3]), named_ranks([0, 1, 2], "is"), named_ranks("3", "is")
    ('rank 3', 'ranks 0-2 are', 'rank 3 is')
    """
    text = ranks if isinstance(ranks, str) else format_ranks(ranks)
    number = 1 if text.isdecimal() else 2
    return f"{plural(number, 'rank')} {text}{f' {agreeing(number, verb)}' if verb else ''}"


def shortened(ranks: str, most: int = 24) -> str:
    """The beginning of a text of `format_ranks`, of about `most` characters; the whole text if it is not longer.

    >>> shortened("0-2,7,9,12,40", most=7), shortened("0-2,7", most=7)
    ('0-2,7,9,...', '0-2,7')
    """
    if len(ranks) <= most:
        return ranks
    cut = ranks.find(",", most)
    return ranks if cut < 0 else f"{ranks[:cut]},..."


def ranks_text(ranks: str, count: int) -> str:
    """How many ranks there are, and which, in words: `1 rank (7)`, `12 ranks (0-11)`."""
    return f"{counted(count, 'rank')} ({shortened(ranks)})"


def parse_ranks(text: str) -> list[int]:
    """Parse a text of `format_ranks` into ascending ranks. Raises ValueError for anything else, and beyond MOST ranks.

    >>> parse_ranks("0-2,7")
    [0, 1, 2, 7]
    """
    ranks: list[int] = []
    for part in text.split(",") if text else []:
        first, dash, last = part.partition("-")
        found = range(int(first), int(last if dash else first) + 1)
        if not found or found[-1] >= MOST or len(ranks) + len(found) > MOST:
            raise ValueError(f"{part!r} is not a range of ranks below {MOST:,}")
        ranks.extend(found)
    return ranks


def pad(rank: int) -> str:
    return f"{rank:05d}"
