# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Kernels that Liger puts into a model's modules are ours as they are the parent's."""

import json
import subprocess
import sys
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from contract import batch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import modeling_hc
from modeling_hc import HCLlamaConfig

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


@pytest.mark.report(31, "kernels that replace the forward of a model's norms, as Liger does")
def test_the_streams_are_reduced_where_the_forward_of_the_norms_is_replaced(outcome: Any) -> None:
    inputs = batch() | {"labels": batch()["input_ids"]}
    losses = {}
    for config in (LlamaConfig(**SIZES), HCLlamaConfig(**SIZES)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        expected = model(**inputs)
        for module in model.modules():
            if isinstance(module, LlamaRMSNorm):
                module.forward = MethodType(LlamaRMSNorm.forward, module)

        replaced = model(**inputs)

        losses[config.model_type] = f"{replaced.loss:.3f}, was {expected.loss:.3f}"
        assert torch.equal(replaced.logits, expected.logits)
    outcome(losses["llama"], losses["hc_llama"])


@pytest.mark.report(31, "use_liger_kernel=True")
def test_liger_patches_as_many_modules_as_in_the_parent(outcome: Any) -> None:
    pytest.importorskip("liger_kernel")
    # In a process of its own: Liger patches modules of transformers, too.
    code = f"""
import json, modeling_hc
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations.liger import apply_liger_kernel

patched = []
for config in (modeling_hc.HCLlamaConfig(**{SIZES}), LlamaConfig(**{SIZES})):  # ours before Liger is imported
    model = AutoModelForCausalLM.from_config(config)
    apply_liger_kernel(model, None)
    patched.append(sorted(n for n, m in model.named_modules() if m.forward.__module__.startswith("liger_kernel")))
print(json.dumps(patched))
"""
    root = Path(modeling_hc.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert result.returncode == 0, result.stderr
    ours, stock = json.loads(result.stdout.splitlines()[-1])
    outcome(f"{len(stock)} modules", f"{len(ours)} modules")
    assert len(stock) == 2 * 3 + 2  # two norms and the MLP of each layer, the last norm, and the loss
    assert ours == stock
