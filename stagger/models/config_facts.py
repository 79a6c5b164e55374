"""What the config.json of a model says that a launch checks. Imports no torch: a launch need not have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from stagger.errors import StaggerError
from stagger.spec.model_advice import advice
from stagger.storage.storage import Storage, join

#: The names that configurations have for the number of blocks.
BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

#: Those for the most places of a row.
PLACES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")

#: Those for the size of the vocabulary, and for the width of the hidden state.
VOCABULARY, HIDDEN = ("vocab_size",), ("hidden_size", "n_embd", "d_model")

#: Those for the width of a block's feed-forward layer, of one expert, and of the experts that every token passes.
FEED_FORWARD = ("intermediate_size", "intermediate_size_mlp", "ffn_dim", "n_inner", "ffn_hidden_size")
EXPERT, SHARED_EXPERT = ("moe_intermediate_size",), ("shared_expert_intermediate_size",)

#: Those for the number of experts that a token passes.
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


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


def read_config(storage: Storage, folder: str) -> dict[str, Any]:
    """The content of a model's config.json. Raises StaggerError when there is none, or it is no JSON object."""
    path = join(folder, "config.json")
    try:
        config = orjson.loads(storage.read(path))
    except NotADirectoryError:
        raise StaggerError(f"{folder}: it is a file. Give the folder that it lies in.") from None
    except FileNotFoundError:
        raise StaggerError(f"{folder}: there is no config.json. {advice(folder)}") from None
    except ValueError as error:
        raise StaggerError(f"{path} is not JSON: {error}. Copy the model again.") from None
    if not isinstance(config, dict):
        raise StaggerError(f"{path} is not a JSON object. Copy the model again.")
    return config
