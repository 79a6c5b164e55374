"""An architecture that cannot be cut is refused, by what a small model of it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t

from stagger.errors import StaggerError
from stagger.models import cut_check
from stagger.models.cut_check import checked
from stagger.models.small_config import blocks_of_all_kinds, small
from stagger.models.transformers_loading import config_of, skeleton
from tests.models.architectures import SLIDING

pytestmark = pytest.mark.each_transformers

GEMMA_3N: dict[str, Any] = {
    **SLIDING,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}


def test_several_hidden_states_beside_one_another_are_refused() -> None:
    with pytest.raises(StaggerError) as refused:
        checked(t.Gemma3nTextConfig(**GEMMA_3N), torch.float32)
    assert str(refused.value).startswith("Gemma3nForCausalLM (transformers 5.")
    assert "cannot be cut: passed block by block, it fails: its hidden state has the shape [2, 3, 24, " in str(
        refused.value
    )


def test_an_encoder_is_refused() -> None:
    with pytest.raises(StaggerError, match=r"BertLMHeadModel .* is not causal: its logits depend on later tokens"):
        checked(t.BertConfig(), torch.bfloat16)


def test_what_blocks_return_is_observed() -> None:
    values = [checked(config, torch.float32) for config in (t.LlamaConfig(), t.BloomConfig(), t.GPTNeoConfig())]
    assert values[0] == 0
    assert values[1] > 0


class Secretive:
    """Blocks that pass something on beside the hidden state."""

    def __init__(self, blocks: Any) -> None:
        self.seen = torch.zeros(())
        for block in blocks:
            block.register_forward_hook(self._after)

    def __deepcopy__(self, memo: dict[int, Any]) -> Secretive:
        copy = object.__new__(Secretive)
        copy.seen = torch.zeros(())
        return copy

    def _after(self, block: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + 0.01
        return output + self.seen


def test_blocks_that_share_more_than_the_hidden_state_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def secretive(config: Any, dtype: torch.dtype) -> Any:
        model = t.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        model.secret = Secretive(model.model.layers)
        return model

    monkeypatch.setattr(cut_check, "causal_model", secretive)
    with pytest.raises(StaggerError, match=r"gives logits that differ from the whole model's by up to .* must share"):
        checked(t.LlamaConfig(rope_theta=12345.0), torch.float32)


def test_a_model_without_one_list_of_blocks_is_refused() -> None:
    with pytest.raises(StaggerError, match=r"BlenderbotForCausalLM cannot be cut: it should have one list of 2 blocks"):
        checked(t.BlenderbotConfig(), torch.float32)


def test_an_architecture_without_a_small_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Any, dtype: torch.dtype) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\n(1x2 and 3x4)")

    monkeypatch.setattr(cut_check, "causal_model", failing)
    with pytest.raises(StaggerError, match=r"cannot be checked, since no small model of it can be made: mat1 and mat2"):
        checked(t.LlamaConfig(rope_theta=54321.0), torch.float32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_type": "no_such_model"}, "does not take the config.json of this model_type 'no_such_model'"),
        ({"model_type": "llama", "hidden_size": "wide"}, "does not take the config.json of this model_type 'llama'"),
    ],
)
def test_a_config_that_transformers_does_not_take_is_refused(content: dict[str, Any], words: str) -> None:
    with pytest.raises(StaggerError, match=r"transformers 5\.") as refused:
        config_of(content)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(StaggerError, match="cannot make a causal language model of the model_type 'vit'"):
        skeleton(t.ViTConfig(), torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        t.LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64),
        t.Qwen3MoeConfig(), t.DeepseekV3Config(), t.GptOssConfig(), t.FalconConfig(), t.MambaConfig(), t.Gemma2Config(),
        t.Llama4TextConfig(), t.Phi3Config(), t.GPT2Config(),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_a_real_size_is_checked_with_a_small_model(config: Any) -> None:
    checked(config, torch.bfloat16)
    made = skeleton(small(config, 4), torch.bfloat16)
    assert sum(parameter.numel() for parameter in made.parameters()) < 40e6


def test_the_skeleton_of_a_huge_model_takes_no_memory() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = skeleton(t.Llama4TextConfig(), torch.bfloat16)
    assert sum(parameter.numel() for parameter in made.parameters()) > 100e9
    assert all(parameter.is_meta for parameter in made.parameters())
    assert not any(buffer.is_meta for buffer in made.buffers())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_small_models_have_blocks_of_all_kinds() -> None:
    assert blocks_of_all_kinds([0] * 60 + [1]) == 61
    assert blocks_of_all_kinds([0, 0, 0, 1] * 12) == 4
