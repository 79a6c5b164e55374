"""datatrove's blocks run unchanged: the same documents and files as its own executor writes, from YAML and Python."""

from __future__ import annotations

from typing import Any

import pytest

from tests.datatrove.blocks import CASES
from tests.datatrove.both import Places


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_file_writes_what_datatroves_executor_writes(
    name: str, places: Places, datatroves: dict[str, dict[str, Any]]
) -> None:
    assert places.run_yaml(CASES[name]) == places.expected(name, CASES[name], datatroves)


@pytest.mark.parametrize("name", CASES)
def test_python_objects_write_what_datatroves_executor_writes(
    name: str, places: Places, datatroves: dict[str, dict[str, Any]]
) -> None:
    assert places.run_python(CASES[name]) == places.expected(name, CASES[name], datatroves)
