"""Which models ranks used is summed, and told where their numbers differ."""

from __future__ import annotations

from typing import Any

from stagger.status.models_used import models_differ, models_used
from tests.kit.records import table_of


def note(**changes: str) -> dict[str, str]:
    one = {"model": "/m/a", "fingerprint": "0123456789abcdef", "dtype": "bfloat16", "device": "A100", "engine": "whole"}
    return {**one, **changes}


def table(*notes: list[dict[str, str]]) -> Any:
    records: list[Any] = [{"rank": rank, "notes": {"models": mine}} for rank, mine in enumerate(notes)] + [{"rank": 99}]
    return table_of(records)


def test_ranks_with_one_model_are_summed_and_engines_do_not_matter() -> None:
    found = models_used(table([note()], [note()], [note(engine="stream")]))
    assert found == [{**note(), "ranks": 2}, {**note(engine="stream"), "ranks": 1}]
    assert models_differ(found) == []
    assert models_differ(models_used(table([note(), note(model="/m/b", fingerprint="f" * 16)]))) == []


def test_other_files_and_other_devices_are_told() -> None:
    found = models_used(table([note()], [note(device="H100")], [note(fingerprint="fedcba9876543210")]))
    assert models_differ(found) == [
        "/m/a: 2 versions of its files, whose numbers differ: 0123456789ab in 2 ranks, fedcba987654 in 1 rank",
        "/m/a: 2 kinds of devices, whose numbers differ: A100 in 2 ranks, H100 in 1 rank",
    ]
