# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/model_info.py counts without building the model; here its numbers are held against real ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling_hc.commands import info as info_command
from modeling_hc.recipes import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configuration" / "models"
NAMES = ["olmo-1b", "olmo-1b-shc4", "olmo-1b-dhc4", "olmoe-10m-30m-dhc4"]


@pytest.fixture(scope="module")
def infos() -> dict[str, dict[str, Any]]:
    recipes = [f"configuration/models/{name}.json" for name in NAMES]
    command = [sys.executable, "scripts/model_info.py", "--json", *recipes]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    return {info["recipe"]: info for info in json.loads(printed.stdout)}


def test_the_products_of_a_residual_model_are_two_for_each_weight_of_a_matrix_and_its_scores_four(
    infos: dict[str, dict[str, Any]],
) -> None:
    config, info = load_recipe(RECIPES / "olmo-1b.json"), infos["olmo-1b"]

    # All parameters of OLMo are in matrices, and its embedding multiplies as the tied output head. (transformers 5.17
    # computes the angles of its rotary embedding as a product, too.)
    assert info["flops_products"] == pytest.approx(2 * info["parameters"], rel=1e-6)
    positions = config.max_position_embeddings
    assert info["flops_scores"] == 4 * positions * config.hidden_size * config.num_hidden_layers
    assert info["flops_over_residual"] == info["parameters_over_residual"] == 0


def test_static_hyper_connections_add_what_table_8_says_less_the_residual_additions(
    infos: dict[str, dict[str, Any]],
) -> None:
    residual_additions, closing = 32 * 2048, 4 * 2048

    added = infos["olmo-1b-shc4"]["flops_over_residual"] + residual_additions - closing

    assert added == pytest.approx(0.0031e9, abs=0.00005e9)


def test_dynamic_hyper_connections_add_the_projection_of_all_streams(infos: dict[str, dict[str, Any]]) -> None:
    dynamic, static = infos["olmo-1b-dhc4"], infos["olmo-1b-shc4"]

    assert dynamic["flops_products"] - static["flops_products"] == 32 * 2 * 2048 * 4 * (4 + 2)


def test_memory_for_the_backward_pass_is_what_a_real_model_keeps(infos: dict[str, dict[str, Any]]) -> None:
    info = infos["olmoe-10m-30m-dhc4"]
    config = load_recipe(RECIPES / "olmoe-10m-30m-dhc4.json", output_router_logits=False)
    model = AutoModelForCausalLM.from_config(config).train()
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    tokens = torch.arange(config.max_position_embeddings)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, labels=tokens, use_cache=False).loss
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in parameters)
    assert loss.isfinite()

    counted = info["memory_bf16_copies"] + info["memory_activations_per_token"] * tokens.numel()
    assert counted == pytest.approx(real, rel=1e-4)
    assert info["memory_weights"] == 4 * model.num_parameters() == info["memory_adamw"] / 2


def test_one_command_prints_tables_a_line_for_each_recipe(in_process: Callable) -> None:
    printed = in_process("scripts/model_info.py", RECIPES / "olmoe-10m-30m.json")

    assert printed.returncode == 0, printed.stderr
    assert [line.split()[0] for line in printed.stdout.splitlines() if line.startswith("olmoe")] == 3 * [
        "olmoe-10m-30m"
    ]


def test_every_variant_has_the_parameters_of_its_formula(capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    d = load_recipe(RECIPES / "olmoe-10m-30m-dhc4.json").hidden_size
    rows = {"mhc": (24, 3), "identity": (8, 2), "mhc_lite": (32, 3), "kromhc": (12, 3)}
    expected = {name: (4 * d + 1) * count + gates for name, (count, gates) in rows.items()}
    expected |= {"static": 24, "dynamic": 24 + 6 * d + 2 + d, "frac": 36 + 9 * (d // 4) + 2 + d // 4}
    command = ["info", "configuration/models/olmoe-10m-30m-dhc4.json", "--json", "--connection", *expected]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.chdir(RECIPES.parents[1])
    info_command.main()
    found = {each["recipe"].split()[1]: each for each in json.loads(capsys.readouterr().out)}
    assert {name: each["parameters_in_one_connection"] for name, each in found.items()} == expected


def test_a_recipe_that_cannot_be_read_is_an_error_in_one_paragraph(tmp_path: Path, in_process: Callable) -> None:
    recipe = tmp_path / "typo.json"
    recipe.write_text('{"model_type": "hc_olmo", "num_stream": 4}')

    printed = in_process("scripts/model_info.py", recipe)

    assert printed.returncode == 1
    assert "num_streams" in printed.stderr
    assert "Traceback" not in printed.stderr
