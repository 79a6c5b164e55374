"""Configurations of small models, one for each architecture that transformers has and the tests cut."""

from __future__ import annotations

from typing import Any

import transformers as t

#: Six blocks, 64 wide.
SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 128}
HEADS: dict[str, Any] = {**GROUPED, "head_dim": 16}
SLIDING: dict[str, Any] = {**HEADS, "sliding_window": 16}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}


def config_of(architecture: str) -> Any:
    """A new configuration: transformers changes them."""
    return ARCHITECTURES[architecture]()


ARCHITECTURES: dict[str, Any] = {
    "llama": lambda: t.LlamaConfig(**GROUPED),
    "qwen2": lambda: t.Qwen2Config(**GROUPED),
    "qwen3": lambda: t.Qwen3Config(**HEADS),
    "mistral": lambda: t.MistralConfig(**GROUPED, sliding_window=16),
    "gemma2": lambda: t.Gemma2Config(**SLIDING),
    "gemma3": lambda: t.Gemma3TextConfig(**SLIDING),
    "phi3": lambda: t.Phi3Config(**GROUPED),
    "gpt2": lambda: t.GPT2Config(n_embd=64, n_layer=6, n_head=4, vocab_size=512),
    "opt": lambda: t.OPTConfig(**SMALL, ffn_dim=128, word_embed_proj_dim=32),
    "bloom": lambda: t.BloomConfig(hidden_size=64, n_layer=6, n_head=4, vocab_size=512),
    "falcon": lambda: t.FalconConfig(**SMALL),
    "neox": lambda: t.GPTNeoXConfig(**SMALL, intermediate_size=128),
    "olmo2": lambda: t.Olmo2Config(**GROUPED),
    "mixtral": lambda: t.MixtralConfig(**GROUPED, **LOCAL_EXPERTS),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(**HEADS, **EXPERTS),
    "deepseek3": lambda: t.DeepseekV3Config(
        **{**GROUPED, "num_key_value_heads": 4},
        moe_intermediate_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=32,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=2,
    ),
    "gpt_oss": lambda: t.GptOssConfig(**HEADS, **LOCAL_EXPERTS),
    "qwen3_next": lambda: t.Qwen3NextConfig(
        **HEADS,
        **EXPERTS,
        shared_expert_intermediate_size=64,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
    "smollm3": lambda: t.SmolLM3Config(**GROUPED),
    "cohere2": lambda: t.Cohere2Config(**GROUPED, sliding_window=16),
    "llama4": lambda: t.Llama4TextConfig(
        **{**HEADS, "intermediate_size": 64}, intermediate_size_mlp=128, num_local_experts=4, num_experts_per_tok=1
    ),
    "glm4_moe": lambda: t.Glm4MoeConfig(
        **HEADS,
        moe_intermediate_size=64,
        num_experts_per_tok=2,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "granite": lambda: t.GraniteConfig(
        **GROUPED, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5
    ),
    "exaone4": lambda: t.Exaone4Config(**GROUPED, sliding_window=16),
    "mamba": lambda: t.MambaConfig(hidden_size=64, num_hidden_layers=6, vocab_size=512),
    "bamba": lambda: t.BambaConfig(
        **GROUPED,
        attn_layer_indices=[2, 4],
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_n_groups=1,
        mamba_d_state=16,
        mamba_expand=2,
    ),
}
