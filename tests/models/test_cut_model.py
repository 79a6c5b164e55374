"""A model that is passed in spans of blocks computes what the whole model of transformers computes, bit for bit."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stagger.errors import StaggerError
from stagger.models.checkpoint import Checkpoint
from stagger.models.cut import find_blocks
from stagger.models.cut_model import CutModel
from stagger.models.microbatch import Microbatch
from stagger.storage.storage import Storage
from tests.models.architectures import ARCHITECTURES, config_of

pytestmark = pytest.mark.each_transformers

#: Spans of blocks: [0, 1), [1, 4), [4, 6).
CUTS = (0, 1, 4, 6)

#: Lengths of rows; the last row only fills the shape.
LENGTHS = (40, 30, 7, 0)

DTYPES = (torch.float32, torch.bfloat16)


def save(folder: Path, config: Any, dtype: torch.dtype = torch.float32, **options: Any) -> str:
    """A model whose weights are all random: initial values of 0 and 1 would hide mistakes."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="200KB", **options)
    return str(folder)


def opened(folder: str, dtype: torch.dtype = torch.float32) -> CutModel:
    return CutModel(Checkpoint.open(Storage(), folder), dtype)


def some_batch() -> Microbatch:
    tokens = torch.randint(3, 512, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    batch = Microbatch(0, tokens, LENGTHS)
    return Microbatch(0, tokens * batch.mask, LENGTHS)


def plain(folder: str, dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def plain_logits(folder: str, batch: Microbatch, dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad():
        return plain(folder, dtype)(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits


def in_spans(folder: str, batch: Microbatch, dtype: torch.dtype) -> torch.Tensor:
    """The logits by four models: one has the ends alone, and the others a span of blocks each."""
    ends = opened(folder, dtype)
    ends.load_ends()
    hidden = ends.embed(batch)
    for begin, end in pairwise(CUTS):
        server = opened(folder, dtype)
        for block in range(begin, end):
            server.load(block)
        hidden = server.run(hidden, batch, range(begin, end))
        assert server.loaded == set(range(begin, end))
    return ends.logits(hidden)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spans_give_the_logits_of_the_whole_model(tmp_path: Path, architecture: str) -> None:
    folder = save(tmp_path, config_of(architecture))
    batch = some_batch()
    for dtype in DTYPES:
        expected = plain_logits(folder, batch, dtype)
        got = in_spans(folder, batch, dtype)
        assert got.dtype == expected.dtype
        assert torch.equal(got[:-1], expected[:-1])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "opt"])
def test_all_states_are_those_that_transformers_returns(tmp_path: Path, architecture: str) -> None:
    folder = save(tmp_path, config_of(architecture))
    batch = some_batch()
    whole = plain(folder, torch.float32).base_model
    with torch.no_grad():
        expected = whole(input_ids=batch.tokens, attention_mask=batch.mask, output_hidden_states=True, use_cache=False)
    model = opened(folder)
    model.load_ends()
    hidden = model.embed(batch)
    for block in range(model.total_blocks):
        if architecture != "opt":  # OPT projects the states of its blocks when it returns them.
            assert torch.equal(hidden, expected.hidden_states[block])
        model.load(block)
        hidden = model.run(hidden, batch, range(block, block + 1))
    assert torch.equal(model.normed(hidden), expected.last_hidden_state)


def test_logits_of_some_places_are_those_of_all(stored: Path) -> None:
    model = opened(str(stored))
    model.load_ends()
    hidden = torch.randn(3, 24, 64)
    assert torch.equal(model.logits(hidden[:, 8:16]), model.logits(hidden)[:, 8:16])


@pytest.mark.parametrize("architecture", ["deepseek3", "gpt_oss"])
def test_a_block_that_was_unloaded_comes_back_the_same(tmp_path: Path, architecture: str) -> None:
    model = opened(save(tmp_path, config_of(architecture)))
    batch = some_batch()
    hidden = torch.randn(*batch.tokens.shape, 64)
    model.load(3)
    before = model.run(hidden, batch, range(3, 4))
    model.unload(3)
    assert model.loaded == set()
    with pytest.raises(ValueError, match=r"not loaded: blocks \[3\]"):
        model.run(hidden, batch, range(3, 4))
    model.load(3, model.weights(3))
    assert torch.equal(model.run(hidden, batch, range(3, 4)), before)


@pytest.mark.parametrize("stored_as", DTYPES)
def test_parameters_have_the_dtypes_that_transformers_gives_them(tmp_path: Path, stored_as: torch.dtype) -> None:
    """Some stay in float32 (DeepSeek's correction of routing), whatever is asked for."""
    for architecture in ("deepseek3", "gpt_oss"):
        folder = save(tmp_path / architecture, config_of(architecture), stored_as)
        for dtype in (torch.bfloat16, torch.float16):
            whole = plain(folder, dtype)
            model = opened(folder, dtype)
            prefix, blocks = find_blocks(whole)
            for number in (0, 2):
                expected = {f"{prefix}.{number}.{name}": one for name, one in blocks[number].state_dict().items()}
                weights = model.weights(number)
                assert weights.keys() == expected.keys()
                for name, tensor in weights.items():
                    assert tensor.dtype == expected[name].dtype, name
                    assert torch.equal(tensor, expected[name]), name
                assert model.block_bytes(number) == sum(one.nbytes for one in expected.values())


def test_embeddings_that_are_tied_are_read_and_counted_once(tmp_path: Path) -> None:
    config = config_of("llama")
    config.tie_word_embeddings = True
    folder = save(tmp_path, config)
    batch = some_batch()
    model = opened(folder)
    assert model.ends_bytes == (512 * 64 + 64) * 4
    model.load_ends()
    assert torch.equal(in_spans(folder, batch, torch.float32)[:-1], plain_logits(folder, batch, torch.float32)[:-1])


def test_a_span_reads_its_own_blocks_and_small_parts_only(stored: Path) -> None:
    checkpoint = Checkpoint.open(Storage(), str(stored))
    model = CutModel(checkpoint, torch.float32)
    headers = checkpoint.bytes_read
    model.load(2)
    model.load(3)
    assert checkpoint.bytes_read - headers == model.block_bytes(2) + model.block_bytes(3) + 64 * 4  # The final norm.


def test_many_models_of_a_process_leave_torch_as_it_was(stored: Path) -> None:
    state = torch.random.get_rng_state()
    before = (torch.empty, torch.zeros, torch.ones, torch.nn.Module.register_parameter, torch.get_default_dtype())
    opened(str(stored), torch.bfloat16)
    after = (torch.empty, torch.zeros, torch.ones, torch.nn.Module.register_parameter, torch.get_default_dtype())
    assert before == after
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def changed(folder: Path, change: dict[str, str | None]) -> Any:
    """The tensors of a model, renamed, or without those that become None, in one file of a new folder."""
    from safetensors.torch import load_file, save_file

    tensors = {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
    renamed = {change.get(name, name): tensor for name, tensor in tensors.items()}
    return lambda new: save_file({name: one for name, one in renamed.items() if name}, new / "model.safetensors")


UP = "model.layers.4.mlp.up_proj.weight"

WRONG: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "missing": ({UP: None}, [f"1 tensor is missing: {UP}."]),
    "missing outside the blocks": ({"model.norm.weight": None}, ["1 tensor is missing: model.norm.weight"]),
    "renamed": ({UP: f"{UP}s"}, [f"1 tensor is missing: {UP};", f"has no place for 1 tensor: {UP}s."]),
    "a block too many": (
        {UP: "model.layers.6.mlp.up_proj.weight"},
        [f"missing: {UP};", "LlamaForCausalLM has no place for 1 tensor: model.layers.6.mlp.up_proj.weight."],
    ),
    "of another model": (
        {f"model.layers.{i}.self_attn.q_proj.weight": f"model.layers.{i}.attn.q.weight" for i in range(6)},
        [
            "6 tensors are missing",
            "has no place for 6 tensors: model.layers.0.attn.q.weight, ",
            ", .... Copy the model",
        ],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_that_are_not_the_models_are_refused_by_name(stored: Path, tmp_path: Path, wrong: str) -> None:
    change, expected = WRONG[wrong]
    changed(stored, change)(tmp_path)
    (tmp_path / "config.json").write_bytes((stored / "config.json").read_bytes())
    with pytest.raises(StaggerError) as refused:
        opened(str(tmp_path))
    assert str(refused.value).startswith(f"{tmp_path}: ")
    for words in expected:
        assert words in str(refused.value)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    save(folder, config_of("mixtral"))
    name = "model.layers.2.block_sparse_moe.experts.1.w1.weight"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    changed(folder, {name: None})(damaged)
    (damaged / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(StaggerError, match=f"1 tensor is missing: {name}"):
        opened(str(damaged))


def test_a_wrong_shape_is_refused_by_name(stored: Path, tmp_path: Path) -> None:
    for file in stored.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"intermediate_size": 128', '"intermediate_size": 144'))
    with pytest.raises(StaggerError, match=r"mlp\.\w+\.weight has the shape \[\d+, \d+\] in the checkpoint, and \["):
        opened(str(tmp_path))


def test_buffers_of_old_checkpoints_are_ignored(stored: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: one for file in stored.glob("*.safetensors") for name, one in load_file(file).items()}
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(6)}
    save_file({**tensors, **old}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((stored / "config.json").read_bytes())
    assert torch.equal(
        in_spans(str(tmp_path), some_batch(), torch.float32), in_spans(str(stored), some_batch(), torch.float32)
    )


def test_weights_of_several_blocks_are_read_in_threads_while_others_compute(stored: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = opened(str(stored))
    expected = [model.weights(block) for block in range(6)]
    batch = some_batch()
    hidden = torch.randn(*batch.tokens.shape, 64)
    model.load(0)
    before = model.run(hidden, batch, range(1))
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(model.weights, block % 6) for block in range(24)]
        while not all(future.done() for future in futures):
            assert torch.equal(model.run(hidden, batch, range(1)), before)
    for number, future in enumerate(futures):
        for name, tensor in future.result().items():
            assert torch.equal(tensor, expected[number % 6][name])


def test_configurations_are_not_changed(stored: Path) -> None:
    checkpoint = Checkpoint.open(Storage(), str(stored))
    before = copy.deepcopy(checkpoint.config)
    CutModel(checkpoint, torch.float32)
    assert checkpoint.config == before
