# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMo 2 with hyper-connections, whose norms stand behind the blocks, keeps what every family promises."""

from contract import FamilyContract
from transformers import Olmo2Config

from modeling_hc import HCOlmo2Config


class TestHCOlmo2(FamilyContract):
    config_class = HCOlmo2Config
    parent_config_class = Olmo2Config
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": True,
    }
    # fp32: without a norm before them, blocks read the outliers of the streams as they are
    compiled_gradient_tolerance = 4e-4
