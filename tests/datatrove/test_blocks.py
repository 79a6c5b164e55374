"""datatrove's blocks run unchanged: the same documents and files as its own executor writes, from YAML and Python."""

from __future__ import annotations

import pytest

from tests.datatrove.blocks import CASES
from tests.datatrove.both import Places


@pytest.mark.parametrize("name", CASES)
def test_a_block_writes_what_datatroves_executor_writes(name: str, places: Places) -> None:
    stages = CASES[name]
    expected = places.run_datatrove(stages)
    assert places.run_yaml(stages) == expected
    assert places.run_python(stages) == expected
