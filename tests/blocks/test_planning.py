"""A plan for given GPUs: sizes are those of the checkpoint, and the engine that fits and is fastest is recommended."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.planning.forecast import Site, best, devices, room, stream, swarm, whole
from stagger.blocks.planning.gpus import KINDS, parse_gpus, speeds
from stagger.blocks.planning.model_size import ModelSize, read_model
from stagger.errors import StaggerError
from stagger.storage.storage import Storage

ROOMY = Site(memory_gb=500, store_gb=10, node_gb=2)

CONFIG = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100, "intermediate_size": 256, "dtype": "float32"}


def checkpoint(folder: Path, tensors: Mapping[str, Sequence[int]], **config: Any) -> str:
    """A model whose safetensors file has a header, and no weights: a plan reads none."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return str(folder)


def llama70(**changes: Any) -> ModelSize:
    fields: dict[str, Any] = {
        "path": "llama",
        "block_bytes": (1_711_000_000,) * 80,
        "ends_bytes": 1_048_000_000,
        "hidden": 8192,
        "item_bytes": 2,
        "block_flop": 1.711e9,
        "head_flop": 5.2e8,
        "activations": 1_300_000_000,
    }
    return ModelSize(**{**fields, **changes})


def test_sizes_are_those_of_the_headers(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": (100, 64),
        "model.layers.0.mlp.weight": (64, 256),
        "model.layers.1.mlp.weight": (64, 256),
        "model.layers.1.mlp.experts.0.weight": (64, 10),
        "model.norm.weight": (64,),
    }
    model = read_model(Storage(), checkpoint(tmp_path / "m", tensors), dtype=None, tokens=10)
    assert model.block_bytes == (4 * 64 * 256, 4 * (64 * 256 + 64 * 10))
    assert (model.ends_bytes, model.item_bytes) == (4 * (100 * 64 + 64), 4)
    assert model.head_flop == 2 * 64 * 100
    half = read_model(Storage(), str(tmp_path / "m" / "config.json"), dtype="bfloat16", tokens=10)
    assert half.bytes * 2 == model.bytes


def test_a_token_passes_only_some_of_the_experts(tmp_path: Path) -> None:
    tensors = {f"model.layers.{block}.mlp.experts.{one}.weight": (64, 10) for block in range(2) for one in range(8)}
    folder = checkpoint(tmp_path / "m", tensors, num_local_experts=8, num_experts_per_tok=2)
    model = read_model(Storage(), folder, dtype=None, tokens=10)
    assert model.block_flop == 2 * 64 * 10 * 2
    assert model.block_bytes[0] == 4 * 64 * 10 * 8


def test_without_weights_the_sizes_are_estimated(tmp_path: Path) -> None:
    """Llama 2 70B: 80 blocks of 855.7 million parameters."""
    config: dict[str, Any] = {
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "vocab_size": 32000,
    }
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = read_model(Storage(), str(tmp_path), dtype=None, tokens=4096)
    assert model.estimated
    assert model.largest == pytest.approx(2 * 855.7e6, rel=0.01)
    assert model.bytes == pytest.approx(138e9, rel=0.01)


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({"model.layers.1.w": (1,)}, {}, "no tensor of block 0 is there"),
        ({"embedding": (1,)}, {}, "no name of a tensor numbers a block"),
        ({"model.layers.0.w": (1,)}, {"num_hidden_layers": None}, "has no number of blocks"),
        ({"model.layers.0.w": (1,)}, {"hidden_size": None}, "has no width"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, tensors: dict[str, Any], config: dict[str, Any], said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        read_model(Storage(), checkpoint(tmp_path / "m", tensors, **config), dtype=None, tokens=10)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 3) + b"{]}", struct.pack("<Q", 2) + b"[]"])
def test_a_damaged_header_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    folder = Path(checkpoint(tmp_path / "m", {"model.layers.0.w": (1,)}))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(StaggerError, match="Copy the file again"):
        read_model(Storage(), str(folder), dtype=None, tokens=10)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A100:80GB x 8, T4:16GB x 24", [("A100", 80, 8), ("T4", 16, 24)]),
        ("8 x a100-40, l4", [("A100", 40, 8), ("L4", 24, 1)]),
        ("nvidia_h100:80gb*2, H100:80 x 3", [("H100", 80, 5)]),
        ("new1:99GB x 2", [("new1", 99, 2)]),
    ],
)
def test_gpus_are_written_in_several_ways(text: str, found: list[tuple[str, int, int]]) -> None:
    assert [(one.name, one.memory_gb, one.count) for one in parse_gpus(text)] == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A100 x 8", "write its memory too \\(A100:40GB or A100:80GB\\)"),
        ("new1 x 8", "write its memory too \\(new1:80GB\\)"),
        ("L4 x 0", "at least one GPU"),
        ("L4 x x", "is not understood"),
        ("2 x L4 x 2", "is not understood"),
        (" , ", "names no GPU"),
    ],
)
def test_mistakes_in_gpus_are_named(text: str, said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        parse_gpus(text)


def test_speeds_are_for_all_gpus_or_for_one_kind() -> None:
    gpus = parse_gpus("A100:80GB, T4")
    assert speeds("1e5", gpus) == {"A100": 1e5, "T4": 1e5}
    assert speeds("a100=146_000", gpus) == {"A100": 146_000}
    with pytest.raises(StaggerError, match="there is no L4 among the GPUs"):
        speeds("L4=5", gpus)


def test_the_table_agrees_with_the_published_speeds() -> None:
    """Tokens per second and layer of Llama 2 70B (Mei et al. 2024)."""
    for name, published in (("A100", 146_000), ("V100", 52_000), ("L4", 30_000), ("T4", 16_000)):
        assert KINDS[name].tflops * 1e12 / 1.711e9 == pytest.approx(published, rel=0.02)


def test_a_model_that_fits_one_gpu_is_not_streamed() -> None:
    model = llama70(block_bytes=(400_000_000,) * 32, block_flop=4e8)
    found = devices(parse_gpus("L4 x 4"), model, {})
    forecasts = [whole(found, model), stream(found, model, ROOMY), swarm(found, model, ROOMY)[0]]
    chosen = best(forecasts, ROOMY)
    assert chosen is not None
    assert chosen.engine == "whole"
    assert chosen.tokens_per_s == pytest.approx(4 * found[0].block_rate / 32)


def test_a_model_that_fits_the_host_is_streamed() -> None:
    model = llama70()
    found = devices(parse_gpus("A100:40GB x 8"), model, {})
    forecasts = [whole(found, model), stream(found, model, ROOMY), swarm(found, model, ROOMY)[0]]
    chosen = best(forecasts, ROOMY)
    assert chosen is not None
    assert chosen.engine == "stream"


def test_where_neither_memory_nor_store_suffices_there_is_a_swarm() -> None:
    """Sixteen A100s with 16 GB of host memory each would read most of the 10 GB/s of the store all the time."""
    model, site = llama70(), Site(memory_gb=16, store_gb=10, node_gb=2)
    found = devices(parse_gpus("A100:40GB x 16"), model, {})
    streamed, (swarmed, plan) = stream(found, model, site), swarm(found, model, site)
    assert streamed.store_gb == pytest.approx(7.83, rel=0.01)
    assert best([whole(found, model), streamed, swarmed], site) == swarmed
    assert plan is not None
    assert {block for span in plan.spans for block in range(span.start, span.end)} == set(range(80))
    assert swarmed.tokens_per_s <= plan.capacity <= 16 * found[0].block_rate / 80 * (1 + 1e-6)


def test_a_swarm_without_room_for_all_blocks_says_how_many_gpus_are_missing() -> None:
    model = llama70()
    found = devices(parse_gpus("T4 x 3"), model, {})
    forecast, plan = swarm(found, model, ROOMY)
    each = room(found[0], model)
    assert plan is None
    assert f"room for {3 * each} blocks of 80; {-(-(80 - 3 * each) // each)} more GPUs would do" in forecast.why


def test_nothing_fits_where_a_block_does_not() -> None:
    model = llama70(block_bytes=(40_000_000_000,) * 4)
    found = devices(parse_gpus("T4 x 100"), model, {})
    assert best([whole(found, model), stream(found, model, ROOMY), swarm(found, model, ROOMY)[0]], ROOMY) is None
