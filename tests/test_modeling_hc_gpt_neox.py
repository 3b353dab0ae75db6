# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""GPT-NeoX with hyper-connections, one around attention and MLP together, keeps what every family promises."""

from pathlib import Path

import torch
from contract import FamilyContract, FamilyPart, batch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from modeling_hc import HCGPTNeoXConfig


class TestHCGPTNeoX(FamilyContract):
    config_class = HCGPTNeoXConfig
    parent_config_class = GPTNeoXConfig
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "rotary_pct": 0.5,
    }
    noise = {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    connections = ("block_hc",)

    def test_the_head_keeps_its_name_on_the_disk(
        self, residual: Path, parent: PreTrainedModel, tmp_path: Path
    ) -> None:
        self.converted(residual).save_pretrained(tmp_path)

        assert "embed_out.weight" in load_file(residual / "model.safetensors")
        assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(**batch()).logits, parent(**batch()).logits)


class TestHCGPTNeoXOneAfterTheOther(FamilyPart):
    """Without `use_parallel_residual`, as some models of this type are."""

    config_class = HCGPTNeoXConfig
    parent_config_class = GPTNeoXConfig
    sizes = TestHCGPTNeoX.sizes | {"use_parallel_residual": False}
    noise = TestHCGPTNeoX.noise
