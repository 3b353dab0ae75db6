# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMoE with hyper-connections keeps what every family promises."""

from contract import FamilyContract
from transformers import OlmoeConfig

from modeling_hc import HCOlmoeConfig


class TestHCOlmoe(FamilyContract):
    config_class = HCOlmoeConfig
    parent_config_class = OlmoeConfig
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
