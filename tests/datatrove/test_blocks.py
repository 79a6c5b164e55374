"""datatrove's blocks run unchanged: the same documents and files as its own executor writes, from YAML and Python."""

from __future__ import annotations

from typing import Any

import pytest

from tests.datatrove.blocks import CASES
from tests.datatrove.both import Places

#: What datatrove's executor has written, by case.
_expected: dict[str, dict[str, Any]] = {}


@pytest.fixture
def expected(name: str, places: Places) -> dict[str, Any]:
    if name not in _expected:
        _expected[name] = places.run_datatrove(CASES[name])
    return _expected[name]


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_file_writes_what_datatroves_executor_writes(
    name: str, places: Places, expected: dict[str, Any]
) -> None:
    assert places.run_yaml(CASES[name]) == expected


@pytest.mark.parametrize("name", CASES)
def test_python_objects_write_what_datatroves_executor_writes(
    name: str, places: Places, expected: dict[str, Any]
) -> None:
    assert places.run_python(CASES[name]) == expected
