"""Whether the Parquet files of a stage have one schema, by the notes of `write_parquet` in the completion records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from stagger.errors import counted, plural
from stagger.ranks import format_ranks
from stagger.rundir.completion_table import CompletionTable

#: Types that are one in the file -> their type: a column without any value is written as strings.
WRITTEN = {"null": "string"}

#: Most columns named for a folder.
SHOWN = 5

#: Longest list of ranks shown, in characters.
RANKS_WIDTH = 40


class Group(NamedTuple):
    """Ranks that wrote files with these columns: name -> type."""

    columns: dict[str, str]
    ranks: list[int]


def schema_differences(table: CompletionTable) -> list[str]:
    """One sentence for each column that differs between the files of an output folder; empty if none does.

    Each sentence names the folder, the column, its types with their ranks, and a type that takes all values.
    """
    folders: dict[str, list[Group]] = {}
    for rank, found in [one for one in zip(table.rank, table.schemas, strict=True) if one[1]]:
        for folder, schemas in found.items():
            add(folders.setdefault(folder, []), schemas, rank)
    return [line for folder, groups in folders.items() if len(groups) > 1 for line in lines(folder, groups)]


def add(groups: list[Group], schemas: Iterable[dict[str, str]], rank: int) -> None:
    for columns in schemas:
        group = next((group for group in groups if group.columns == columns), None)
        if group is None:
            groups.append(Group(columns, [rank]))
        else:
            group.ranks.append(rank)


def lines(folder: str, groups: list[Group]) -> list[str]:
    found = []
    for name in dict.fromkeys(name for group in groups for name in group.columns):
        ranks: dict[str, set[int]] = {}
        for group in groups:
            ranks.setdefault(group.columns.get(name, ""), set()).update(group.ranks)
        if len({WRITTEN.get(type_, type_) for type_ in ranks}) > 1:
            found.append(f"{folder}: {difference(name, ranks)}; set its type in columns, as {name}: {fitting(ranks)}")
    more = len(found) - SHOWN
    return [*found[:SHOWN], *([f"{folder}: {counted(more, 'more column', 'differs')}"] if more > 0 else [])]


def difference(name: str, ranks: dict[str, set[int]]) -> str:
    """Which ranks have which type of a column; the type "" means that they have no such column.

    >>> difference("n", {"int64": {0, 2, 3}, "": {1}})
    "'n' is int64 in ranks 0,2-3, but missing in rank 1"
    """
    parts = [f"{type_ or 'missing'} in {named(numbers)}" for type_, numbers in sorted(ranks.items(), reverse=True)]
    return f"{name!r} is {', but '.join(parts)}"


def named(ranks: set[int]) -> str:
    text = format_ranks(sorted(ranks))
    if len(text) > RANKS_WIDTH:
        return f"{counted(len(ranks), 'rank')} ({min(ranks)}, ...)"
    return f"{plural(len(ranks), 'rank')} {text}"


def fitting(types: Iterable[str]) -> str:
    """The type for `columns` that takes the values of all these types.

    >>> fitting(["int64", "float64"]), fitting(["int64", "null", ""]), fitting(["string", "bool"])
    ('float64', 'int64', 'json')
    """
    left = set(types) - {"", "null"} or {"string"}
    if left == {"int64", "float64"}:
        return "float64"
    (first, *others) = left
    return first if not others and "<" not in first else "json"
