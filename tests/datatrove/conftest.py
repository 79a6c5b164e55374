"""What all tests of datatrove's blocks share: one crawl, its documents as datatrove extracts them, and small models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.datatrove.both import Places
from tests.datatrove.materials import make_materials
from tests.kit.crawl import in_environment, models
from tests.kit.in_process import in_process


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that lead datatrove to the models of the tests."""
    pytest.importorskip("fasttext", reason="fastText cannot be installed for this Python")
    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="package", autouse=True)
def offline(environment: dict[str, str]) -> Iterator[None]:
    """Nothing is downloaded, neither here nor in processes that tests start."""
    with in_environment(environment):
        yield


@pytest.fixture(scope="package")
def materials(tmp_path_factory: pytest.TempPathFactory, offline: None) -> Path:
    """Read-only input of the tests: see `make_materials`."""
    return make_materials(tmp_path_factory.mktemp("materials"))


@pytest.fixture(scope="session")
def datatroves() -> dict[str, Any]:
    """What datatrove's executor has written so far, by the name of the case."""
    return {}


@pytest.fixture
def places(tmp_path: Path, materials: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Where the two tools write in this test. Ranks of stagger run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGGER_LOG_LEVEL", "WARNING")
    with in_process(), mock.patch.dict(os.environ):
        yield Places(tmp_path, materials)
