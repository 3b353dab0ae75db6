# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Liger patches our models as it patches their parents."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import modeling_hc

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


@pytest.mark.report(31, "use_liger_kernel=True")
def test_liger_patches_what_it_patches_in_the_parent_but_the_norm_that_reads_the_streams(outcome: Any) -> None:
    pytest.importorskip("liger_kernel")
    # In a process of its own, because Liger patches modules of transformers.
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
    assert ours == [name for name in stock if name != "model.norm"]  # Liger's would not reduce the streams
