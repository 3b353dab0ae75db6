# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Llama with hyper-connections keeps what every family promises."""

from contract import FamilyContract
from transformers import LlamaConfig

from modeling_hc import HCLlamaConfig


class TestHCLlama(FamilyContract):
    config_class = HCLlamaConfig
    parent_config_class = LlamaConfig
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    compile_backend = "inductor"
