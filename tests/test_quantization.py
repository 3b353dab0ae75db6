# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Libraries that quantize linear layers while a checkpoint is loaded, on a CPU."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

import modeling_hc
from modeling_hc.loading_hc import is_connection


def torchao_int8() -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bitsandbytes(**options: bool) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


@pytest.mark.parametrize(
    "method",
    [torchao_int8, lambda: bitsandbytes(load_in_8bit=True), lambda: bitsandbytes(load_in_4bit=True)],
    ids=["torchao int8", "bitsandbytes int8", "bitsandbytes 4 bit"],
)
@pytest.mark.filterwarnings("default")  # of the libraries
def test_a_quantized_hc_model_is_its_quantized_residual_parent_and_its_connections_stay_fp32(
    method, tmp_path: Path
) -> None:
    options = method()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **shape)).save_pretrained(tmp_path / "residual")
    converted = modeling_hc.HCLlamaForCausalLM.from_pretrained(
        tmp_path / "residual", num_streams=4, stream_reduction="mean"
    )
    converted.save_pretrained(tmp_path / "hc")
    ids = torch.arange(20)[None]

    parent, ours = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, quantization_config=options, dtype=torch.float32)
        for name in ("residual", "hc")
    )

    with torch.no_grad():
        exact, theirs, logits = (model.eval()(ids).logits for model in (converted, parent, ours))
    assert torch.equal(logits, theirs)
    assert 1e-4 < (logits - exact).norm() / exact.norm() < 0.2
    dtypes = {parameter.dtype for name, parameter in ours.named_parameters() if is_connection(name)}
    assert dtypes == {torch.float32}
    assert type(ours.model.layers[0].mlp.up_proj.weight) is type(parent.model.layers[0].mlp.up_proj.weight)
