# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/benchmark.py at a toy size. Its times are nobody's business here; what it counts and rejects is."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_hc.commands import benchmark

TOY = "--layers 2 --hidden_size 64 --intermediate_size 128 --batch_size 2 --sequence 70 --rounds 2 --decode_tokens 1"
TINY = (
    "--layers 1 --hidden_size 16 --intermediate_size 16 --head_size 8 --vocab_size 32 --batch_size 1 --sequence 6 "
    "--rounds 2 --decode_tokens 1"
)


def run(*arguments: str, shape: str = TOY) -> None:
    """Runs the script in this process, which has imported what takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmark.py", *shape.split(), *arguments])
        benchmark.main()


def test_hyper_connections_keep_less_for_the_backward_pass_than_the_paper_s_listing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "cpu.json"
    names = ["listing-4", "dynamic-4", "recompute-4", "lucidrains-2", "deepseek-2"]
    run("--variants", *names, "--output", str(output))
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert list(rows) == ["stock", *names]
    # Every variant computes the stock model's function, so it must have its loss.
    assert rows["dynamic-4"]["loss"] == pytest.approx(rows["stock"]["loss"], abs=1e-4)
    assert 1 < rows["recompute-4"]["kept"] < rows["dynamic-4"]["kept"] < rows["listing-4"]["kept"]
    assert rows["stock"]["bytes"]["kept"] == pytest.approx(saved_by_stock_llama(), rel=0.02)
    assert all(row["bytes"]["peak"] > row["bytes"]["kept"] for row in rows.values())
    # 7 matrix products a layer and the head's, and two of each in the backward pass.
    assert [op["calls"] for op in rows["stock"]["profile"] if op["name"] == "aten::mm"] == [3 * (2 * 7 + 1)]
    assert all(rows[name]["boundary"]["backward"] > 0 for name in names if name != "recompute-4")
    assert "dynamic-4" in capsys.readouterr().out
    run("--figure", str(output))
    assert (output.parent / "benchmark.png").stat().st_size > 1000


def test_a_table_that_was_cut_off_is_completed_and_no_other_is_mixed_into_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny.json"
    run("--variants", "static-1", "--output", str(output), shape=TINY)
    before = json.loads(output.read_text())["rows"]
    run("--variants", "static-1", "dynamic-2", "--output", str(output), shape=TINY)
    after = json.loads(output.read_text())["rows"]
    assert list(after) == ["stock", "static-1", "dynamic-2"]
    assert {name: after[name] for name in before} == before

    with pytest.raises(SystemExit):
        run("--output", str(output), "--dtype", "bfloat16", shape=TINY)
    assert "dtype was 'float32' and is 'bfloat16'" in capsys.readouterr().err
    assert json.loads(output.read_text())["rows"] == after
    output.write_text("[]")
    with pytest.raises(SystemExit):
        run("--output", str(output), shape=TINY)
    assert "no result of this script" in capsys.readouterr().err and output.read_text() == "[]"


def test_a_variant_that_fails_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.nn.Module, *_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("too much of it")

    monkeypatch.setattr("modeling_hc.DynamicHyperConnection.forward", fail)
    output = tmp_path / "tiny.json"
    with pytest.raises(SystemExit, match=r"Failed: dynamic-2\."):
        run("--variants", "dynamic-2", "static-2", "--output", str(output), shape=TINY)
    rows = json.loads(output.read_text())["rows"]
    assert rows["dynamic-2"] == {"failed": "OutOfMemoryError: too much of it"}
    assert rows["static-2"]["step"]["ratio"] > 0


def test_the_kernels_are_timed_and_said_to_be_where_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton runs on Linux x86-64 only")
    if torch.cuda.is_available():
        pytest.skip("the kernels run in Triton's interpreter where there is no GPU")
    output = tmp_path / "tiny.json"
    monkeypatch.setattr("modeling_hc.dispatch_hc.KERNELS", "triton")
    monkeypatch.setattr("modeling_hc.triton_hc.ROWS", 8)
    run("--variants", "dynamic-2", "--output", str(output), shape=TINY)
    result = json.loads(output.read_text())
    assert result["environment"]["kernels"] == "triton"
    assert result["rows"]["dynamic-2"]["boundary"]["kernels"] is True


def test_liger_s_kernels_train_the_stock_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "tiny.json"
    run("--variants", "liger-2", "--output", str(output), shape=TINY)
    rows = json.loads(output.read_text())["rows"]
    if not importlib.util.find_spec("liger_kernel"):
        assert list(rows) == ["stock"]
        assert "no rows of liger: the package liger-kernel is not installed" in capsys.readouterr().err
    else:  # a fresh model knows nothing, whatever its connections
        assert rows["liger-2"]["loss"] == pytest.approx(rows["stock"]["loss"], abs=0.1)


@pytest.mark.slow
def test_the_table_of_a_gpu_is_made_at_a_toy_size_on_a_cpu(tmp_path: Path) -> None:
    """Compiled, in bf16, decoding with a static cache, as one command; the shape and device alone are others."""
    output = tmp_path / "gpu.json"
    run("--gpu", "--device", "cpu", "--variants", "dynamic-4", "listing-4", "--output", str(output), shape=TINY)
    result = json.loads(output.read_text())
    assert result["arguments"]["compile"] and result["arguments"]["dtype"] == "bfloat16"
    for row in result["rows"].values():
        assert row["bytes"]["eager"] > 0 and row["decode"]["seconds"] > 0


def test_a_gpu_that_is_not_there_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        run("--gpu", shape="")
    assert "there is no cuda here" in capsys.readouterr().err


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


def test_an_unknown_variant_is_rejected_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--variants", "dynamic-4", "residual-4")
    assert "'residual-4'" in capsys.readouterr().err
