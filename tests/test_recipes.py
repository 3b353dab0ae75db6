# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Every recipe in configuration/ says what its name says, and misspelt ones are rejected."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from modeling_hc.configuration_hc import HyperConnectionConfigMixin
from modeling_hc.recipes import load_recipe
from modeling_hc.training.arguments import parse

ROOT = Path(__file__).parents[1]

MODELS = sorted((ROOT / "configuration/models").glob("*.json"))
TRAINING = sorted((ROOT / "configuration/training").glob("*.yaml"))


def _residual_twin(path: Path) -> Path:
    name = re.fullmatch(r"(?:hc-)?(.+?)-[sd]hc\d+(?:-notanh)?", path.stem)
    return path.with_name(f"{name[1]}.json") if name else path


TWINS = [path for path in MODELS if _residual_twin(path) != path and _residual_twin(path).exists()]


def _parameters(path: Path) -> int:
    auto_class = "AutoModelForImageClassification" if path.stem.startswith("vit") else "AutoModelForCausalLM"
    with torch.device("meta"):
        return getattr(transformers, auto_class).from_config(load_recipe(path)).num_parameters()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_recipe_has_known_keys_only_and_builds(path):
    assert _parameters(path) > 0


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_a_hyper_connected_recipe_differs_from_its_residual_twin_in_hyper_connections_only(path):
    hyper_connected, residual = json.loads(path.read_text()), json.loads(_residual_twin(path).read_text())
    assert hyper_connected.pop("model_type") == f"hc_{residual.pop('model_type')}"
    for field in fields(HyperConnectionConfigMixin):
        hyper_connected.pop(field.name, None)
    assert hyper_connected == residual


@pytest.mark.parametrize("size", [10, 60, 125, 350])
def test_small_llamas_have_about_the_parameters_in_their_names(size):
    for path in (f"llama-{size}m.json", f"hc-llama-{size}m-dhc4.json"):
        assert _parameters(ROOT / "configuration/models" / path) == pytest.approx(size * 1e6, rel=0.04)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_every_training_recipe_parses_and_fits_its_model(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    model_args, data_args, args = parse([str(path), "--output_dir", str(tmp_path), "--bf16", "false"])
    assert args.max_steps > args.warmup_steps
    if model_args.config:
        assert data_args.block_size <= load_recipe(model_args.config).max_position_embeddings


@pytest.mark.parametrize("path", [path for path in TRAINING if "paper" in path.stem], ids=lambda path: path.stem)
def test_the_papers_recipes_take_four_million_tokens_a_step_to_five_hundred_billion(path):
    values = yaml.safe_load(path.read_text())
    step = values["block_size"] * values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * 64
    assert step == 4_194_304
    assert values["max_steps"] * step == pytest.approx(500e9, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model_type": "hc_llama", "num_strems": 4}', ["num_strems", "num_streams"]),
        ('{"model_type": "llama", "hiden_size": 4}', ["hiden_size", "hidden_size", "LlamaConfig"]),
        ('{"model_type": "hc_lama"}', ["hc_lama", "hc_llama"]),
        ('{"model_type": "hc_llama", "num_streams": 0}', ["num_streams", "0"]),
        ('{"model_type": "hc_llama", "num_streams": "four"}', ["num_streams", "four"]),
        ('{"model_type": "hc_llama", "connection": "both"}', ["connection", "both"]),
        ('{"hidden_size": 4}', ["model_type"]),
        ("hidden_size: 4", ["recipe.json", "config.json"]),
        ("[]", ["recipe.json", "model_type"]),
    ],
)
def test_a_wrong_recipe_is_rejected_by_the_name_of_what_is_wrong(content, words, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert all(word in str(error.value) for word in words)


def test_an_override_replaces_a_field_before_others_are_derived_from_it():
    config = load_recipe(ROOT / "configuration/models/llama-demo.json", hidden_size=64, num_attention_heads=2)
    assert config.head_dim == 32
    with pytest.raises(ValueError, match=r"'num_layer' in config_overrides.*num_hidden_layers"):
        load_recipe(ROOT / "configuration/models/llama-demo.json", num_layer=3)
