# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/benchmark.py at a toy size. Its times are nobody's business here; what it counts and refuses is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
TOY = "--layers 2 --hidden_size 64 --intermediate_size 128 --batch_size 2 --sequence 70 --rounds 2 --decode_tokens 1"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *TOY.split(), *arguments], capture_output=True, text=True)


def test_hyper_connections_keep_less_for_the_backward_pass_than_the_paper_s_listing(tmp_path: Path) -> None:
    output = tmp_path / "results" / "cpu.json"
    done = run(
        "--variants", "listing-4", "dynamic-4", "recompute-4", "lucidrains-2", "deepseek-2", "--output", str(output)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert list(rows) == ["stock", "listing-4", "dynamic-4", "recompute-4", "lucidrains-2", "deepseek-2"]
    # Every variant computes the stock model's function, so it must have its loss.
    assert rows["dynamic-4"]["loss"] == pytest.approx(rows["stock"]["loss"], abs=1e-4)
    assert 1 < rows["recompute-4"]["kept"] < rows["dynamic-4"]["kept"] < rows["listing-4"]["kept"]
    assert rows["stock"]["bytes"]["kept"] == pytest.approx(saved_by_stock_llama(), rel=0.02)
    assert all(row["bytes"]["peak"] > row["bytes"]["kept"] for row in rows.values())
    assert "dynamic-4" in done.stdout
    drawn = run("--figure", str(output))
    assert drawn.returncode == 0 and (output.parent / "benchmark.png").stat().st_size > 1000, drawn.stderr
    again = run("--output", str(output))
    assert again.returncode == 2 and "exists" in again.stderr


def saved_by_stock_llama() -> int:
    """The same bytes, counted by autograd's hooks."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, **sizes))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(2, 70, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    return sum(kept.values())


def test_an_unknown_variant_is_refused_by_name() -> None:
    done = run("--variants", "dynamic-4", "residual-4")
    assert done.returncode == 2 and "'residual-4'" in done.stderr
