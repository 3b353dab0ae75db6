# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Mistral with hyper-connections, made as Llama: tested here for what can differ, and whole under the mark `slow`."""

from contract import FamilyPart
from transformers import MistralConfig

from modeling_hc import HCMistralConfig


class TestHCMistral(FamilyPart):
    config_class = HCMistralConfig
    parent_config_class = MistralConfig
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 4,
    }
