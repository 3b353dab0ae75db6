# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Configurations reject what they cannot mean, by name, and survive saving."""

import re
from dataclasses import fields
from inspect import getsource
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, GPT2Config, LlamaConfig, PreTrainedModel

from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM
from modeling_hc.configuration_hc import check_spelling, families


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_streams", 0),
        ("num_streams", -1),
        ("num_streams", 2.0),
        ("num_streams", True),
        ("connection", "Dynamic"),
        ("use_tanh", "no"),
        ("stream_reduction", "max"),
        ("output_rescaling", True),
        ("hc_eps", "1e-6"),
    ],
)
def test_a_wrong_value_is_rejected_with_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        HCLlamaConfig(**{field: value})
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        setattr(HCLlamaConfig(), field, value)


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("num_stream", "num_streams"),
        ("streams", "num_streams"),
        ("hc_streams", "num_streams"),
        ("tanh", "use_tanh"),
        ("rate", "num_streams"),
        ("stream_reductoin", "stream_red"),
    ],
)
def test_another_name_for_a_field_is_rejected_with_the_right_one(wrong: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{wrong}.*did you mean '{right}"):
        HCLlamaConfig(**{wrong: 1})
    LlamaConfig().save_pretrained(tmp_path)
    for load in (HCLlamaConfig.from_pretrained, HCLlamaForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=f"{wrong}.*did you mean '{right}"):
            load(tmp_path, **{wrong: 1})


def test_no_name_of_transformers_is_taken_for_a_misspelt_field_of_ours() -> None:
    names = set(vars(GenerationConfig())) | set(re.findall(r'kwargs\.pop\("(\w+)"', getsource(PreTrainedModel)))
    assert {"num_beams", "device_map"} <= names
    for family in families().values():
        parent = CONFIG_MAPPING[family.parent_model_type]
        check_spelling(names | set(dir(parent)) | {field.name for field in fields(parent)}, family.__name__)


@pytest.mark.parametrize("value", [-1, -1.0, 0, 1])
def test_an_eps_that_is_no_small_positive_number_is_rejected_by_its_name(value: float) -> None:
    with pytest.raises(ValueError, match=f"hc_eps={value} .* from 1e-20.* to 0.01"):
        HCLlamaConfig(hc_eps=value)


def test_a_saved_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = HCLlamaConfig(num_streams=3, connection="static", stream_reduction="mean", hidden_size=96)
    config.save_pretrained(tmp_path)
    saved, read = config.to_dict(), AutoConfig.from_pretrained(tmp_path).to_dict()
    for values in (saved, read):
        values.pop("_name_or_path", None), values.pop("transformers_version", None)
    assert read == saved


def test_a_residual_configuration_is_read_and_that_of_another_architecture_is_not(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=96, num_attention_heads=3).save_pretrained(tmp_path / "llama")
    config = HCLlamaConfig.from_pretrained(tmp_path / "llama", num_streams=2)
    assert (config.model_type, config.hidden_size, config.num_streams) == ("hc_llama", 96, 2)
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="model_type='gpt2'"):
        HCLlamaConfig.from_pretrained(tmp_path / "gpt2")
