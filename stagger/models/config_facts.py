"""What the config.json of a model says that a launch checks. Imports no torch: a launch need not have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The names that configurations have for the number of blocks.
BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

#: Those for the most places of a row.
PLACES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about the decoder: models of several media have one for each."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def number_of(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these numbers that a configuration has; None if it has none of them."""
    found = (text_config(config).get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def own_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that a model's weights are meant for; float32 if its configuration has none.

    >>> own_dtype({"torch_dtype": "bfloat16"}), own_dtype({"text_config": {"dtype": "float16"}}), own_dtype({})
    ('bfloat16', 'float16', 'float32')
    """
    for one in (text_config(config), config):
        for name in ("dtype", "torch_dtype"):
            if isinstance(value := one.get(name), str):
                return value.removeprefix("torch.")
    return "float32"
