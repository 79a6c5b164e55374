"""Tests of the check that the Parquet files of one folder have the same columns."""

from __future__ import annotations

from typing import Any

import pytest

from stagger.status.schemas import schema_differences
from tests.kit.records import table_of


def records(*columns: dict[str, str] | None, folder: str = "out") -> list[Any]:
    """A completion record for each rank, which wrote files with these columns; None for no file."""
    return [
        {"rank": rank, **({"notes": {"schemas": {folder: [one]}}} if one is not None else {})}
        for rank, one in enumerate(columns)
    ]


TEXT = {"text": "string", "id": "string"}


@pytest.mark.parametrize(
    ("ranks", "difference"),
    [
        ([{"n": "int64"}, {"n": "int64"}], ""),
        ([{"n": "int64", "m": "bool"}, {"m": "bool", "n": "int64"}], ""),
        ([{"n": "string"}, {"n": "null"}], ""),
        ([{"n": "null"}, {"n": "null"}, None], ""),
        (
            [{"n": "int64"}, {"n": "float64"}],
            "'n' is int64 in rank 0, but float64 in rank 1; set its type in columns, as n: float64",
        ),
        (
            [{"n": "int64"}, {}, {"n": "int64"}, {"n": "int64"}],
            "'n' is int64 in ranks 0,2-3, but missing in rank 1; set its type in columns, as n: int64",
        ),
        (
            [{"n": "int64"}, {"n": "null"}],
            "'n' is null in rank 1, but int64 in rank 0; set its type in columns, as n: int64",
        ),
        (
            [{"n": "string"}, {"n": "timestamp"}],
            "'n' is timestamp in rank 1, but string in rank 0; set its type in columns, as n: json",
        ),
        (
            [{"n": "list<int64>"}, {"n": "list<float64>"}],
            "'n' is list<int64> in rank 0, but list<float64> in rank 1; set its type in columns, as n: json",
        ),
    ],
)
def test_a_difference_names_column_types_ranks_and_the_way_out(
    ranks: list[dict[str, str] | None], difference: str
) -> None:
    found = schema_differences(table_of(records(*(None if rank is None else {**TEXT, **rank} for rank in ranks))))
    assert found == ([f"out: {difference}"] if difference else [])


def test_folders_are_compared_on_their_own() -> None:
    assert schema_differences(table_of([*records({"n": "int64"}), *records({"n": "bool"}, folder="other")])) == []


def test_files_of_one_rank_may_differ_too() -> None:
    record: Any = {"rank": 3, "notes": {"schemas": {"out": [{"n": "int64"}, {"n": "bool"}]}}}
    assert schema_differences(table_of([record])) == [
        "out: 'n' is int64 in rank 3, but bool in rank 3; set its type in columns, as n: json"
    ]


def test_many_ranks_and_columns_make_a_short_message() -> None:
    odd = {str(n): "bool" for n in range(20)}
    found = schema_differences(table_of(records(*(odd if rank % 3 else {} for rank in range(1000)))))
    assert found[0] == (
        "out: '0' is bool in 666 ranks (1, ...), but missing in 334 ranks (0, ...); set its type in columns, as 0: bool"
    )
    assert found[5:] == ["out: 15 more columns differ"]
