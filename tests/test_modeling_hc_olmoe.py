# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMoE with hyper-connections keeps what every family promises, and its experts."""

from pathlib import Path

import pytest
import torch
import transformers
from contract import FamilyContract, batch, close, generate
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, OlmoeConfig, PreTrainedModel

from modeling_hc import HCOlmoeConfig


class TestHCOlmoe(FamilyContract):
    config_class = HCOlmoeConfig
    parent_config_class = OlmoeConfig
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    lora_targets = ["q_proj", "v_proj"]  # all linear layers are no target that peft has for experts, stock or ours

    @pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.23"), reason="the stock OLMoE does not compile there either"
    )
    def test_the_compiled_model_has_the_outputs_and_gradients_of_the_eager_one(self) -> None:
        super().test_the_compiled_model_has_the_outputs_and_gradients_of_the_eager_one()

    def test_router_logits_and_load_balancing_loss_are_the_parents(
        self, residual: Path, parent: PreTrainedModel
    ) -> None:
        inputs = batch() | {"labels": batch()["input_ids"], "output_router_logits": True}

        expected, actual = parent(**inputs), self.converted(residual)(**inputs)

        assert len(actual.router_logits) == self.sizes["num_hidden_layers"]
        for mine, theirs in zip(actual.router_logits, expected.router_logits, strict=True):
            assert torch.equal(mine, theirs)
        assert expected.aux_loss > 0
        assert actual.aux_loss == expected.aux_loss
        assert actual.loss == expected.loss

    def test_the_load_balancing_loss_reaches_every_router(self) -> None:
        model = self.trained()

        model(**batch(), output_router_logits=True).aux_loss.backward()

        assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in model.model.layers)

    def test_a_model_that_trains_with_the_load_balancing_loss_generates(self) -> None:
        prompts = batch(left_padding=3)

        tokens = generate(self.trained(output_router_logits=True), **prompts)

        assert torch.equal(tokens, generate(self.trained(), **prompts))

    def test_experts_and_router_survive_loading_a_residual_checkpoint(
        self, residual: Path, parent: PreTrainedModel
    ) -> None:
        model, expected = self.converted(residual).state_dict(), parent.state_dict()

        experts = [name for name in expected if ".mlp." in name]
        assert len(experts) == 3 * self.sizes["num_hidden_layers"]
        assert all(torch.equal(model[name], expected[name]) for name in experts)

    def test_experts_are_saved_in_upstreams_layout(self, residual: Path, tmp_path: Path) -> None:
        self.converted(residual).save_pretrained(tmp_path)

        saved, expected = load_file(tmp_path / "model.safetensors"), load_file(residual / "model.safetensors")

        assert "model.layers.0.mlp.experts.3.down_proj.weight" in expected
        assert {name for name in saved if "_hc." not in name} == set(expected)
        assert all(torch.equal(saved[name], expected[name]) for name in expected)

    def test_the_fast_implementation_of_the_experts_is_used_as_for_the_parent(self, parent: PreTrainedModel) -> None:
        model = self.trained()
        assert model.config._experts_implementation == parent.config._experts_implementation == "grouped_mm"
        fast = model(**batch()).logits

        model.set_experts_implementation("eager")

        assert close(fast, model(**batch()).logits, 1e-5)

    @pytest.mark.parametrize(("output_rescaling", "factor"), [("divide", 0.5), ("multiply", 2.0)])
    def test_the_output_projection_of_every_expert_is_rescaled(self, output_rescaling: str, factor: float) -> None:
        def down_projections(rescaling: str) -> torch.Tensor:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(self.config(num_streams=4, output_rescaling=rescaling))
            return torch.stack([layer.mlp.experts.down_proj for layer in model.model.layers])

        assert torch.equal(down_projections(output_rescaling), factor * down_projections("none"))
