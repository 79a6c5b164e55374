"""Small models, made once for all tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.corpus import save_model


class Models:
    """Folders of small models with random weights, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, str] = {}

    def __call__(self, architecture: str, **changes: Any) -> str:
        name = "-".join([architecture, *(f"{key}={value}" for key, value in changes.items())])
        if name not in self._made:
            self._made[name] = save_model(self._folder / name, architecture, **changes)
        return self._made[name]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))
