# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What the code takes for granted about transformers; a failure here names what moved in a new version."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments, conversion_mapping
from transformers.conversion_mapping import extract_weight_conversions_for_model
from transformers.core_model_loading import WeightRenaming
from transformers.models.llama import modeling_llama

import modeling_hc
from modeling_hc import DynamicHyperConnection
from modeling_hc.modeling_hc_llama import HCLlamaPreTrainedModel

FAMILIES = ["Llama", "Mistral", "Mixtral", "Olmo", "Olmoe", "Qwen2", "Qwen3", "Qwen3Moe", "SmolLM3"]
EXPERTS = ["Mixtral", "Olmoe", "Qwen3Moe"]
SIZES: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def residual(family: str, **kwargs: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**SIZES | kwargs))


def hyper_connected(family: str, **kwargs: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(getattr(modeling_hc, f"HC{family}Config")(**SIZES | kwargs))


@pytest.mark.parametrize("family", FAMILIES)
def test_our_constructors_build_what_upstreams_constructors_build(family: str) -> None:
    """Ours run upstream's, with other classes for the layers and the last norm."""
    parent, model = residual(family), hyper_connected(family)

    for theirs, ours in ((parent, model), (parent.model, model.model)):
        missing = {name for name in vars(theirs) if name not in vars(ours)}
        assert missing == set(), f"{type(theirs).__name__} has new attributes"
        assert [name for name, _ in theirs.named_children()] == [name for name, _ in ours.named_children()]


def test_a_constructor_leaves_upstreams_file_as_it_is_and_heeds_what_others_patched_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Patched(modeling_llama.LlamaRotaryEmbedding):
        pass

    before = dict(vars(modeling_llama))
    hyper_connected("Llama")
    assert vars(modeling_llama) == before
    assert type(residual("Llama").model.layers[0]) is modeling_llama.LlamaDecoderLayer

    monkeypatch.setattr(modeling_llama, "LlamaRotaryEmbedding", Patched)
    assert type(hyper_connected("Llama").model.rotary_emb) is Patched


def test_what_upstream_finds_by_the_name_of_a_class_ours_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Upstream(modeling_llama.LlamaForCausalLM):
        __module__ = "transformers.models.invented.modeling_invented"
        _keep_in_fp32_modules_strict = {"gate"}

    table: dict[str, Any] = {"Upstream": [WeightRenaming("embed_out.", "lm_head.")]}
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", table)

    class HCInvented(HCLlamaPreTrainedModel, Upstream):
        pass

    model = HCInvented(modeling_hc.HCLlamaConfig(**SIZES))

    assert [c.source_patterns for c in extract_weight_conversions_for_model(model)] == [["embed_out."]]
    assert {"gate", "attn_hc", "mlp_hc"} <= model._keep_in_fp32_modules_strict


@pytest.mark.parametrize("family", FAMILIES)
def test_upstreams_model_calls_its_layers_and_layers_their_blocks_as_ours_expect(family: str) -> None:
    layer = type(residual(family).model.layers[0])
    source = inspect.getsource(layer.forward)

    statements = [
        "hidden_states = self.input_layernorm(hidden_states)",
        "hidden_states, _ = self.self_attn(",
        "hidden_states = residual + hidden_states",
        "hidden_states = self.post_attention_layernorm(hidden_states)",
        "hidden_states = self.mlp(hidden_states)",
        "hidden_states = residual + hidden_states",
        "return hidden_states",
    ]
    assert re.findall(r"(?:hidden_states(?:, _)? = (?!hidden).*|return .*)", source) == statements


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_a_residual_checkpoint_initialises_the_hyper_connections(family: str, tmp_path: Path) -> None:
    residual(family).save_pretrained(tmp_path)

    model = getattr(modeling_hc, f"HC{family}ForCausalLM").from_pretrained(tmp_path, num_streams=3)

    connections = [module for module in model.modules() if isinstance(module, DynamicHyperConnection)]
    assert len(connections) == 4
    for connection in connections:
        expected = connection.initial_values()
        assert expected.keys() == dict(connection.named_parameters()).keys()
        assert all(torch.equal(getattr(connection, name), value) for name, value in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("output_rescaling", "factor"), [("divide", 0.5), ("multiply", 2.0)])
def test_a_fresh_model_s_layers_are_initialised(family: str, output_rescaling: str, factor: float) -> None:
    """Upstream passes over modules of custom code that have no parameters of their own."""

    def output_projection(rescaling: str) -> nn.Parameter:
        torch.manual_seed(0)
        return hyper_connected(family, output_rescaling=rescaling).model.layers[1].self_attn.o_proj.weight

    assert torch.equal(output_projection(output_rescaling), factor * output_projection("none"))


@pytest.mark.parametrize(("family", "neutral"), [("Olmo2", 1.0), ("Olmo3", 1.0), ("Gemma3Text", 0.0)])
@torch.no_grad()
def test_a_fresh_model_with_norms_behind_its_blocks_writes_half_as_much_to_four_streams(
    family: str, neutral: float
) -> None:
    """The norm would undo a scale of the projection; Gemma's multiplies by 1 + weight."""

    def layer(rescaling: str) -> nn.Module:
        torch.manual_seed(0)
        return hyper_connected(family, head_dim=8, output_rescaling=rescaling).model.layers[1]

    halved, unscaled, x = layer("divide"), layer("none"), torch.randn(1, 5, SIZES["hidden_size"])

    for norm in (halved.post_attention_layernorm, halved.post_feedforward_layernorm):
        assert torch.equal(norm.weight, torch.full_like(norm.weight, neutral - 0.5))
    assert torch.equal(halved.mlp.down_proj.weight, unscaled.mlp.down_proj.weight)
    written = unscaled.mlp_block(x)
    assert written.all()
    assert torch.equal(halved.mlp_block(x), 0.5 * written)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_norm_inside_a_hyper_connection_is_the_family_s_own(family: str) -> None:
    layer = hyper_connected(family, use_tanh=False).model.layers[0]
    connection, norm = layer.attn_hc, layer.input_layernorm
    connection.alpha_bias.zero_()
    connection.alpha_weight.copy_(torch.eye(5, 16))  # alpha becomes the start of the normalised stream
    connection.alpha_scale.fill_(1)
    assert connection.affine == bool(list(norm.parameters()))
    for weight in norm.parameters():
        connection.norm.copy_(weight.normal_())
    streams = 1e-2 * torch.randn(2, 3, 4, 16)  # small, so that eps matters

    _, _, alpha, _ = connection(streams)

    assert torch.allclose(alpha, norm(streams)[..., :5], atol=1e-5)


@pytest.mark.parametrize("family", EXPERTS)
def test_the_conversion_of_expert_checkpoints_is_found_by_model_type(family: str) -> None:
    parent = extract_weight_conversions_for_model(residual(family))
    model = extract_weight_conversions_for_model(hyper_connected(family))

    assert parent, "there is no checkpoint conversion any more"
    assert [c.source_patterns for c in model] == [c.source_patterns for c in parent]


@pytest.mark.parametrize("family", EXPERTS)
def test_upstream_tells_by_the_text_of_a_file_whether_its_experts_have_implementations(family: str) -> None:
    assert "use_experts_implementation" in inspect.getsource(PreTrainedModel._can_set_experts_implementation.__func__)
    assert hyper_connected(family)._can_set_experts_implementation()
    assert not hyper_connected("Olmo")._can_set_experts_implementation()


def test_the_trainer_leaves_bias_and_norm_out_of_weight_decay(tmp_path: Path) -> None:
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(1)) for name in ("alpha_bias", "static_alpha")})
    trainer = Trainer(residual("Llama"), TrainingArguments(tmp_path, use_cpu=True, report_to="none"))

    assert trainer.get_decay_parameter_names(model) == ["static_alpha"]


@pytest.mark.parametrize("family", EXPERTS)
def test_upstream_cannot_generate_with_the_load_balancing_loss_and_ours_can(family: str) -> None:
    prompts = {"inputs": torch.tensor([[0, 5, 5], [5, 5, 5]]), "max_new_tokens": 3, "eos_token_id": None}

    with pytest.raises(RuntimeError):
        residual(family, output_router_logits=True).generate(**prompts)
    hyper_connected(family, output_router_logits=True).generate(**prompts)
