# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A model of images and text that builds its text model by configuration takes a hyper-connected one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    Qwen3Config,
)

from modeling_hc import HCGemma3TextConfig, HCLlamaConfig, HCQwen3Config, HyperConnection

IMAGE_TOKEN, PATCHES = 98, 4
TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": None,
}
FAMILIES = [(HCLlamaConfig, LlamaConfig), (HCQwen3Config, Qwen3Config), (HCGemma3TextConfig, Gemma3TextConfig)]


def llava(text_config: PreTrainedConfig) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text_config, image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("family", "parent"), FAMILIES)
@torch.no_grad()
def test_llava_with_a_hyper_connected_text_model_computes_writes_and_saves_what_the_residual_one_does(
    family: type[PreTrainedConfig], parent: type[PreTrainedConfig], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    residual = llava(parent(**TEXT))
    for parameter in residual.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    model = llava(family(**TEXT, stream_reduction="mean"))
    missing, unexpected = model.load_state_dict(residual.state_dict(), strict=False)
    assert unexpected == []
    assert all("_hc." in name for name in missing)
    assert sum(isinstance(module, HyperConnection) for module in model.modules()) == 2 * TEXT["num_hidden_layers"]
    inputs = {
        "input_ids": torch.tensor([[1, *[IMAGE_TOKEN] * PATCHES, 5, 6, 7]]),
        "pixel_values": torch.randn(1, 3, 8, 8),
    }

    expected = residual(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    low = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(loaded(**inputs).logits, expected)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), residual.generate(**inputs, **options))
    dtypes = {"_hc." in name: parameter.dtype for name, parameter in low.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
