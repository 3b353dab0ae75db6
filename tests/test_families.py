# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Families whose layer is made as another's: tested here for what can differ, and whole under the mark `slow`.

Qwen2, Qwen3, SmolLM3 and Granite are made as Llama, Qwen3-MoE and Mixtral as OLMoE, OLMo 3 and Gemma 3 as OLMo 2.
Every multiplier, window and list of layers is away from its neutral value, or a wrong layer would pass.
"""

from typing import Any

from contract import FamilyPart
from transformers import (
    Gemma3TextConfig,
    GraniteConfig,
    MixtralConfig,
    Olmo3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from modeling_hc import (
    HCGemma3TextConfig,
    HCGraniteConfig,
    HCMixtralConfig,
    HCOlmo3Config,
    HCQwen2Config,
    HCQwen3Config,
    HCQwen3MoeConfig,
    HCSmolLM3Config,
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


class TestHCQwen2(FamilyPart):
    config_class = HCQwen2Config
    parent_config_class = Qwen2Config
    sizes = SIZES | WINDOW | {"max_window_layers": 1}


class TestHCQwen3(FamilyPart):
    config_class = HCQwen3Config
    parent_config_class = Qwen3Config
    sizes = SIZES | WINDOW | {"head_dim": 16, "attention_bias": True, "max_window_layers": 1}


class TestHCQwen3Moe(FamilyPart):
    config_class = HCQwen3MoeConfig
    parent_config_class = Qwen3MoeConfig
    sizes = SIZES | {
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    }
    lora_targets = ["q_proj", "v_proj"]  # as OLMoE's


class TestHCMixtral(FamilyPart):
    config_class = HCMixtralConfig
    parent_config_class = MixtralConfig
    sizes = SIZES | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}
    noise = {"attention_dropout": 0.1, "router_jitter_noise": 0.1}
    lora_targets = ["q_proj", "v_proj"]  # as OLMoE's
    # One gate's gradient, a sum over all tokens whose terms cancel, is more than 1e-4 off when compiled.
    compiled_gradient_tolerance = 4e-4


class TestHCOlmo3(FamilyPart):
    config_class = HCOlmo3Config
    parent_config_class = Olmo3Config
    sizes = SIZES | {"attention_bias": True, "sliding_window": 4, "layer_types": LAYER_TYPES}


class TestHCGemma3Text(FamilyPart):
    config_class = HCGemma3TextConfig
    parent_config_class = Gemma3TextConfig
    sizes = SIZES | {
        "head_dim": 16,
        "query_pre_attn_scalar": 32,
        "sliding_window": 4,
        "layer_types": LAYER_TYPES,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
    }


class TestHCGranite(FamilyPart):
    config_class = HCGraniteConfig
    parent_config_class = GraniteConfig
    sizes = SIZES | {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 4.0,
    }


class TestHCSmolLM3(FamilyPart):
    config_class = HCSmolLM3Config
    parent_config_class = SmolLM3Config
    sizes = SIZES | WINDOW | {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": False}
