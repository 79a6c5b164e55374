"""Small models, made once for all tests of this room, and an S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models.architectures import config_of
from tests.models.corpus import save_model
from tests.s3.conftest import s3, server  # noqa: F401 # Fixtures.


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


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


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in three files and an index. Do not change it."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    model.save_pretrained(folder, max_shard_size="500KB")
    return folder
