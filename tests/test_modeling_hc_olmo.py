# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMo with hyper-connections, made as Llama: tested here for what can differ, and whole under the mark `slow`."""

from contract import FamilyPart
from transformers import OlmoConfig

from modeling_hc import HCOlmoConfig


class TestHCOlmo(FamilyPart):
    config_class = HCOlmoConfig
    parent_config_class = OlmoConfig
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "clip_qkv": 8.0,
    }
