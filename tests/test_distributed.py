# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Many processes: the short campaign of campaigns/layouts.py (`make layouts` runs the long one), and the recipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import compare_versions
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import is_deepspeed_available

import modeling_hc

ROOT = Path(__file__).parents[1]
ZERO = [
    pytest.param(name, marks=pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed"))
    for name in ("zero2", "zero3")
]
needs_recent_trainer = pytest.mark.skipif(
    compare_versions("transformers", "<", "5.23"),
    reason="the Trainer before 5.23 cannot save a tensor-parallel model, nor resume in several processes on CPUs",
)
TENSOR_PARALLEL = pytest.param("tensor-parallel", marks=needs_recent_trainer)
RECIPES = sorted((ROOT / "configuration/accelerate").glob("*.yaml"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict]:
    """What each layout gave. It has a process of its own: one that has run backward cannot fork workers that do."""
    results = tmp_path_factory.mktemp("layouts") / "results.json"
    command = [sys.executable, "-m", "campaigns.layouts", "--short", "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert results.exists(), done.stderr[-3000:]
    return {row["layout"]: row for row in json.loads(results.read_text())}


@pytest.mark.parametrize("layout", ["fsdp2", TENSOR_PARALLEL, *ZERO])
def test_two_processes_learn_what_one_process_learns(rows, layout):
    row = rows[layout]
    assert row["processes"] == 2
    assert max(row["losses"]) - min(row["losses"]) > 0.1  # there was something to learn
    assert row["difference"] < 1e-5
    if layout != "tensor-parallel":  # where the Trainer weighs the last held-out batch wrongly
        assert row["eval_difference"] < 1e-5


def test_a_run_that_two_processes_saved_under_fsdp2_goes_on_in_one(rows):
    row = rows["fsdp2, saved by 2"]
    assert row["processes"] == 1
    assert (Path(row["folder"]) / "checkpoint-5").exists()
    assert row["difference"] < 1e-5


@pytest.mark.parametrize("layout", ["fsdp2", TENSOR_PARALLEL, "fsdp2, saved by 2", *ZERO])
def test_the_saved_folder_is_the_one_that_a_single_process_saves(rows, layout):
    folder = Path(rows[layout]["folder"])
    one = folder.with_name("llama-dynamic-one")
    files = {path.name for path in one.iterdir() if path.is_file()}
    assert {path.name for path in folder.iterdir() if path.is_file()} == files
    assert {"modeling_hc_llama.py", "config.json", "model.safetensors"} <= files
    for name in files:
        if name.endswith(".py") or name in ("config.json", "generation_config.json"):
            assert (folder / name).read_bytes() == (one / name).read_bytes(), name
    weights, expected = load_file(folder / "model.safetensors"), load_file(one / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(weights[name].dtype == torch.float32 for name in weights)
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        logits, wanted = (AutoModelForCausalLM.from_pretrained(f)(ids).logits for f in (folder, one))
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-3)


def test_hyper_connections_are_computed_in_fp32_under_the_bf16_policy_of_fsdp2(rows):
    """Their parameters are those of the checkpoint to the last bit, which bf16 could not hold."""
    for found in rows["fsdp2, bf16"]["found"]:
        assert found.pop("linear") == "torch.bfloat16"
        assert len(found) == 4
        for connection in found.values():
            assert connection == {"dtypes": ["torch.float32"], "exact": True, "streams": "torch.bfloat16"}


@pytest.mark.report(28, "DeepSpeed ZeRO-2 and ZeRO-3 in bf16, two processes")
@pytest.mark.report(20, "DeepSpeed ZeRO-2 and ZeRO-3 in bf16, two processes")
@pytest.mark.parametrize("layout", ZERO)
def test_hyper_connections_are_computed_and_saved_in_fp32_under_the_autocast_of_deepspeed(rows, layout, outcome):
    row = rows[f"{layout}, bf16"]
    for found in row["found"]:
        linear = found.pop("linear")
        assert linear == "torch.bfloat16"
        assert len(found) == 4
        for connection in found.values():
            assert connection == {"dtypes": ["torch.float32"], "exact": True, "streams": "torch.float32"}
    weights = load_file(Path(row["folder"]) / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    outcome("", f"{layout}: linear layers in {linear}, connections fp32 and exact, saved in fp32")


@pytest.mark.report(29, "ZeRO-3 from scratch")
@pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed")
def test_a_model_made_under_zero3_has_the_initial_values_of_any_other(rows, outcome):
    found = rows["zero3, from scratch"]["found"]
    assert found["stock"]["std"] == pytest.approx(1, abs=0.05)
    assert found["ours"]["std"] == pytest.approx(1 / 2, abs=0.025)  # divided by the root of 4 streams
    assert found["ours"]["initial"]
    outcome(
        *(f"std of the output projections {found[which]['std']:.3f} of the others'" for which in ("stock", "ours"))
    )


@pytest.mark.report(20, "DeepSpeed's own fp16 or bf16")
@pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed")
def test_deepspeed_that_would_cast_the_connections_is_rejected(rows, tmp_path, outcome):
    home = Path(rows["zero2"]["folder"]).parent
    config = {"zero_optimization": {"stage": 2}, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    (tmp_path / "zero2.json").write_text(json.dumps(config))
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero2.json")}
    launched |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    flags = {
        "model_name_or_path": home / "llama-dynamic",
        "tokenizer": home / "tokenizer",
        "train_files": home / "train.jsonl",
        "block_size": 32,
        "max_steps": 1,
        "ddp_backend": "gloo",
        "fp16": True,
        "output_dir": tmp_path / "run",
    }
    done = subprocess.run(
        [sys.executable, "scripts/train.py", *(f"--{name}={value}" for name, value in flags.items())],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **launched, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "train.py: fp16=true would have DeepSpeed cast the hyper-connections" in done.stderr, done.stderr[-2000:]
    assert "--fp16 false" in done.stderr and "torch_autocast" in done.stderr
    outcome("", "rejected, with the way out")


@needs_recent_trainer
def test_a_resumed_stream_goes_on_at_the_right_sample_in_every_process(rows):
    whole, resumed = rows["stream"]["samples"]
    assert len(whole) == len(resumed) == 2
    assert whole[0] != whole[1]
    for before, after in zip(whole, resumed, strict=True):
        assert len(before) == 8
        assert after == before[5:]
    blocks = [str(block) for step in zip(*whole, strict=True) for batch in step for block in batch]
    assert blocks.index(blocks[0], 1) < 5 * 4  # its second pass had begun when it was saved


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_accelerate_launch_accepts_every_recipe(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    flags = ["--config_file", str(recipe), "scripts/train.py", "configuration/training/demo.yaml"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    kind = recipe.stem.partition("-")[0]
    assert args.use_fsdp == (kind == "fsdp2")
    assert args.use_deepspeed == kind.startswith("zero")
    assert args.multi_gpu == (recipe.stem in ("ddp", "multi-cpu", "multi-node"))
    assert args.num_machines == (2 if recipe.stem == "multi-node" else 1)
    if args.use_fsdp:
        assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
        assert args.fsdp_activation_checkpointing == ("checkpointing" in recipe.stem)
    if args.use_deepspeed:
        config = json.loads((ROOT / args.deepspeed_config_file).read_text())
        assert config["zero_optimization"]["stage"] == int(recipe.stem.removeprefix("zero"))
        assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
        assert "bf16" not in config


@pytest.mark.parametrize("family", ["Llama", "Olmo", "Olmoe", "Mistral"])
def test_tensor_parallelism_splits_what_it_splits_in_the_residual_parent(family):
    config = getattr(modeling_hc, f"HC{family}Config")(num_hidden_layers=1)
    parent = AutoConfig.for_model(config.parent_model_type, num_hidden_layers=1)
    with torch.device("meta"):
        model, residual = AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(parent)
    assert model.tp_plan == residual.tp_plan
    assert model.tp_plan and not any("_hc" in name for name in model.tp_plan)
