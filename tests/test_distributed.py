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
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import modeling_hc

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configuration/accelerate").glob("*.yaml"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict]:
    """What each layout gave. It has a process of its own: one that has run backward cannot fork workers that do."""
    results = tmp_path_factory.mktemp("layouts") / "results.json"
    command = [sys.executable, "-m", "campaigns.layouts", "--short", "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert results.exists(), done.stderr[-3000:]
    return {row["layout"]: row for row in json.loads(results.read_text())}


@pytest.mark.parametrize("layout", ["fsdp2", "tensor-parallel"])
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


@pytest.mark.parametrize("layout", ["fsdp2", "tensor-parallel", "fsdp2, saved by 2"])
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
        assert args.zero_stage == int(recipe.stem.removeprefix("zero"))


@pytest.mark.parametrize("family", ["Llama", "Olmo", "Olmoe", "Mistral"])
def test_tensor_parallelism_splits_what_it_splits_in_the_residual_parent(family):
    config = getattr(modeling_hc, f"HC{family}Config")(num_hidden_layers=1)
    parent = AutoConfig.for_model(config.parent_model_type, num_hidden_layers=1)
    with torch.device("meta"):
        model, residual = AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(parent)
    assert model.tp_plan == residual.tp_plan
    assert model.tp_plan and not any("_hc" in name for name in model.tp_plan)
