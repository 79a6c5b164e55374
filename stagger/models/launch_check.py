"""What a launch checks of a model. Imports torch if it is installed here: a machine that launches need not have it."""

from __future__ import annotations

from typing import Any

from stagger.models.settings import Settings, has_models
from stagger.models.tokenizer_folder import check_tokenizer
from stagger.progress import busy
from stagger.storage.storage import Storage
from stagger.terminal import logger


def check_model(storage: Storage, settings: Settings, config: dict[str, Any]) -> None:
    """Raise StaggerError when the model of a step is incomplete, does not suit the settings, or cannot be cut."""
    settings.longest(config)
    check_tokenizer(storage, settings.tokenizer)
    if has_models():
        with busy(f"checking that {settings.model} can be cut into blocks"):
            check_cut(storage, settings, config)
    else:
        logger.warning(
            f"torch and transformers are not installed here, so the launch does not check the weights of"
            f" {settings.model}: each job does, before its first document. They must be installed there: pip install"
            " 'stagger-slurm[models]'"
        )


def check_cut(storage: Storage, settings: Settings, config: dict[str, Any]) -> None:
    """Cut the model, but load no weights: a small model is compared with an uncut one, and the names of all tensors are
    checked. Makes the tokenizer.
    """
    from stagger.models.checkpoint import Checkpoint
    from stagger.models.cut_model import CutModel
    from stagger.models.open_engine import dtype_of
    from stagger.models.tokens import Tokenizer

    checkpoint = Checkpoint.open(storage, settings.model)
    CutModel(checkpoint, dtype_of(checkpoint, settings.dtype_name(config)))
    Tokenizer.open(storage, settings.tokenizer)
