# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""hyper_connect: by name and in memory the same model, which computes what the residual one computes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import test_families
import test_modeling_hc_gpt_neox
import test_modeling_hc_llama
import test_modeling_hc_mistral
import test_modeling_hc_olmo
import test_modeling_hc_olmo2
import test_modeling_hc_olmoe
import test_modeling_hc_vit
import torch
from contract import FamilyContract, batch, generate, scramble
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from modeling_hc import HCLlamaForCausalLM, hyper_connect

FAMILIES = {
    contract.parent_config_class.model_type: contract
    for module in (
        test_families,
        test_modeling_hc_gpt_neox,
        test_modeling_hc_llama,
        test_modeling_hc_mistral,
        test_modeling_hc_olmo,
        test_modeling_hc_olmo2,
        test_modeling_hc_olmoe,
    )
    for name, contract in vars(module).items()
    if name.startswith("TestHC") and name != "TestHCGPTNeoXOneAfterTheOther"
}


def residual(family: type[FamilyContract] = FAMILIES["llama"], **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family.parent_config(**kwargs)).eval()
    scramble(model, 0.2)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_becomes_what_its_checkpoint_becomes_by_name(family: str, tmp_path: Path) -> None:
    model = residual(FAMILIES[family])
    expected, weights = model(**batch()).logits, dict(model.named_parameters())
    model.save_pretrained(tmp_path / "residual")

    connected = hyper_connect(model, num_streams=2)
    by_name = hyper_connect(tmp_path / "residual", num_streams=2)

    assert connected is model
    assert all(connected.get_parameter(name) is weight for name, weight in weights.items())
    assert type(connected) is type(by_name)
    assert [type(m) for m in connected.modules()] == [type(m) for m in by_name.modules()]
    assert [m.training for m in connected.modules()] == [m.training for m in by_name.modules()]
    state, expected_state = connected.state_dict(), by_name.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], value) for name, value in expected_state.items())
    ignored = {"_name_or_path", "dtype", "architectures"}
    mine, theirs = ({k: v for k, v in m.config.to_dict().items() if k not in ignored} for m in (connected, by_name))
    assert mine == theirs
    for name in ("_no_split_modules", "_keep_in_fp32_modules_strict"):
        assert getattr(connected, name) == getattr(by_name, name)
    for m in (connected, by_name):
        assert torch.equal(m(**batch()).logits, expected)
        assert m.config.stream_reduction == "mean"


def test_a_model_in_memory_returns_hidden_states_where_no_other_of_its_class_was_built() -> None:
    known = dict(_CAN_RECORD_REGISTRY)
    _CAN_RECORD_REGISTRY.clear()
    try:
        model = residual()
        expected = model(**batch(), output_hidden_states=True).hidden_states

        actual = hyper_connect(model, num_streams=2)(**batch(), output_hidden_states=True).hidden_states
    finally:
        dict.update(_CAN_RECORD_REGISTRY, known)

    assert all(map(torch.equal, actual, expected))


def test_a_model_in_memory_gets_the_gated_reduction() -> None:
    model = residual(FAMILIES["llama"])
    expected = model(**batch()).logits

    hyper_connect(model, stream_reduction="gated")

    torch.testing.assert_close(model(**batch()).logits, expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "gemma3_text"])
def test_what_was_connected_in_memory_generates_trains_and_is_saved(family: str, tmp_path: Path) -> None:
    model = residual(FAMILIES[family])
    expected = generate(model, **batch())
    hyper_connect(model, connection="static")
    assert torch.equal(generate(model, **batch()), expected)

    model(**batch(), labels=batch()["input_ids"]).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "_hc." in name)

    scramble(model, 0.1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


def test_a_low_precision_model_and_one_without_a_head_are_connected_with_connections_in_fp32() -> None:
    model = hyper_connect(AutoModel.from_config(FAMILIES["qwen3"].parent_config(), dtype=torch.bfloat16))

    assert {p.dtype for name, p in model.named_parameters() if "_hc." in name} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "_hc." not in name} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


def test_a_checkpoint_gets_the_head_of_the_auto_class(tmp_path: Path) -> None:
    residual().save_pretrained(tmp_path)

    model = hyper_connect(tmp_path, AutoModelForSequenceClassification, num_labels=3)

    assert type(model).__name__ == "HCLlamaForSequenceClassification"
    assert model.num_labels == 3


# ---- what is rejected -----------------------------------------------------------------------------------------------


def rejected(model: Any) -> str:
    with pytest.raises(ValueError) as caught:
        hyper_connect(model)
    return str(caught.value)


def test_an_unknown_family_is_rejected_with_the_known_ones_and_where_to_look_for_others(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(
        GemmaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.save_pretrained(tmp_path)

    for source in (model, tmp_path):
        message = rejected(source)
        assert "model_type='gemma', and there is no such family." in message
        assert "docs/architectures.md" in message and "`python -m campaigns.fits gemma`" in message
        assert all(family in message for family in FAMILIES)


def test_what_has_hyper_connections_already_is_rejected(tmp_path: Path) -> None:
    model = hyper_connect(residual())
    model.save_pretrained(tmp_path)

    for source in (model, tmp_path):
        assert "has hyper-connections already (model_type='hc_llama')" in rejected(source)


def test_adapters_are_rejected_until_they_are_added_last() -> None:
    model = residual()
    with_adapters = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM"))

    assert "has adapters of PEFT" in rejected(with_adapters)
    assert "has adapters of PEFT" in rejected(with_adapters.get_base_model())
    get_peft_model(hyper_connect(model), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))(**batch())


@pytest.mark.filterwarnings("ignore:torch.*deprecated")  # torch.ao, which is
def test_a_quantized_model_is_rejected(tmp_path: Path) -> None:
    model = residual()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    quantized = text.replace("{", '{"quantization_config": {"quant_method": "awq"},', 1)
    (tmp_path / "config.json").write_text(quantized)
    model.is_quantized = True

    assert "is quantized" in rejected(model)
    assert "is quantized" in rejected(tmp_path)
    assert "is quantized" in rejected(torch.ao.quantization.quantize_dynamic(residual(), {nn.Linear}))


def test_weights_that_are_elsewhere_are_rejected(tmp_path: Path) -> None:
    model = residual()
    model.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
    offloaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "disk")
    with torch.device("meta"):
        on_meta = LlamaForCausalLM(model.config)

    assert "several devices, or its weights are not in memory" in rejected(offloaded)
    assert "several devices, or its weights are not in memory" in rejected(on_meta)
    for attribute in ("ds_id", "device_mesh"):  # of DeepSpeed's ZeRO-3; of DTensor, which FSDP2 and TP have
        sharded = residual()
        setattr(sharded.lm_head.weight, attribute, 0)
        assert "is sharded" in rejected(sharded)


def test_what_is_not_upstreams_is_rejected_and_left_as_it_was(tmp_path: Path) -> None:
    class Mine(LlamaForCausalLM):
        pass

    model = Mine(FAMILIES["llama"].parent_config())

    assert "Mine is not upstream's class" in rejected(model)
    assert model.config.model_type == "llama"
    assert "Linear is no model of transformers" in rejected(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="no argument 'dtype' for a model in memory"):
        hyper_connect(residual(), dtype=torch.bfloat16)
    residual(FAMILIES["granite"]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"no AutoModelForSequenceClassification of model_type='granite': .* one of A"
    ):
        hyper_connect(tmp_path, AutoModelForSequenceClassification)
    with pytest.raises(TypeError, match="num_streams"):  # the call that this one stands for
        AutoModelForCausalLM.from_pretrained(tmp_path, num_streams=4)
    assert issubclass(HCLlamaForCausalLM, LlamaForCausalLM)


def test_a_checkpoint_with_another_head_is_rejected_with_the_auto_class_to_give(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(FAMILIES["llama"].parent_config()).save_pretrained(
        tmp_path / "llama"
    )
    test_modeling_hc_vit.residual().save_pretrained(tmp_path / "vit")

    assert "give AutoModelForSequenceClassification as second argument" in rejected(tmp_path / "llama")
    assert "give as second argument, auto_class, one of AutoModel, AutoModelForImageC" in rejected(tmp_path / "vit")


def test_a_name_without_a_checkpoint_is_told_from_an_adapter(tmp_path: Path) -> None:
    get_peft_model(residual(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)

    assert f"{tmp_path} has no config.json, so it is not a model checkpoint; merge the adapter" in rejected(tmp_path)
    for name in ("nowhere", tmp_path / "nowhere"):
        with pytest.raises(OSError, match=f"^{name} cannot be read: there is no such folder, and no such model"):
            hyper_connect(name)


@pytest.mark.parametrize("second", [4, "AutoModelForCausalLM", HCLlamaForCausalLM])
def test_a_second_argument_that_is_no_auto_class_is_rejected(second: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"is no Auto class of transformers.* as in num_streams=4"):
        hyper_connect(tmp_path, second)
