"""Fixtures: one thread, an S3 server, and folders of small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.models.architectures import config_of
from tests.s3.conftest import s3, server  # noqa: F401 # Fixtures.


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in three files and an index. Do not change it."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    model.save_pretrained(folder, max_shard_size="500KB")
    return folder
