# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""modeling_hc.health: against the models' modules and plain definitions, and in the stock Trainer."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import test_modeling_hc_llama
import test_modeling_hc_olmoe
import torch
from contract import scramble
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, Trainer, TrainingArguments

from modeling_hc.analysis import measure, record
from modeling_hc.analysis.recording import connections
from modeling_hc.health import ConnectionHealth, health, stream_magnitudes

LLAMA = test_modeling_hc_llama.TestHCLlama()
VARIANTS = {
    "DHC": LLAMA.config(),
    "SHC": LLAMA.config(connection="static"),
    "OLMoE": test_modeling_hc_olmoe.TestHCOlmoe().config(),
    "residual": LLAMA.parent_config(),
}


def tokens() -> Tensor:
    return torch.randint(2, 99, (2, 12), generator=torch.Generator().manual_seed(3))


def trained(variant: str, **fields) -> PreTrainedModel:
    """A model away from its initial values."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(type(VARIANTS[variant])(**VARIANTS[variant].to_dict() | fields))
    scramble(model, 0.2)
    return model.eval()


def test_a_fresh_model_carries_its_streams_unchanged_and_moves_nothing() -> None:
    values = health(AutoModelForCausalLM.from_config(VARIANTS["DHC"]), tokens())

    assert values.pop("input_cosine") <= 1
    assert values.pop("effective_rank") == pytest.approx(1, abs=1e-3)
    assert values.pop("second_singular_value") == pytest.approx(1)
    assert values == {"forward_gain": 1, "backward_gain": 1, "alpha_spread": 1, "beta_spread": 0, "dynamic_size": 0}


@pytest.mark.parametrize(("connection", "kept"), [("mhc", 0.990), ("mhc_lite", 0.992), ("kromhc", 0.9993)])
def test_a_bounded_carry_starts_as_near_the_identity_as_the_documentation_says(connection: str, kept: float) -> None:
    config = LLAMA.config(connection=connection)
    values = health(AutoModelForCausalLM.from_config(config), tokens())

    assert values["second_singular_value"] == pytest.approx(kept ** (2 * config.num_hidden_layers), rel=5e-3)
    assert values["alpha_spread"] == pytest.approx(kept, abs=5e-4)
    assert values["forward_gain"] == pytest.approx(1) and values["backward_gain"] == pytest.approx(1)


@pytest.mark.parametrize("variant", ["DHC", "SHC", "OLMoE"])
@torch.no_grad()
def test_the_values_are_those_of_products_of_the_modules_coefficients_token_by_token(variant: str) -> None:
    model = trained(variant)
    seen: list[tuple[Tensor, ...]] = []
    for connection in connections(model):
        connection.register_forward_hook(lambda module, args, output: seen.append(output))
    model(tokens())
    alphas = [alpha.double().expand(2, 12, 4, 5) for _, _, alpha, _ in seen]
    betas = [beta.double().expand(2, 12, 4) for _, _, _, beta in seen]
    parts = torch.linalg.svdvals(seen[-1][0].double())
    parts /= parts.sum(-1, keepdim=True)
    forward, backward, second = [], [], []
    for first in range(len(alphas)):
        rows, columns = [], []
        for b in range(2):
            for s in range(12):
                product = torch.eye(4, dtype=torch.float64)
                for alpha in alphas[first:]:
                    product = alpha[b, s, :, 1:].T @ product  # mHC's H_res, [to, from]
                rows.append(max(sum(abs(x) for x in row) for row in product.tolist()))
                columns.append(max(sum(abs(x) for x in column) for column in product.T.tolist()))
                second.append(torch.linalg.svdvals(product)[1].item())
        forward.append(sum(rows) / 24)
        backward.append(sum(columns) / 24)
    static = [torch.cat([c.alpha_bias, c.beta_bias[:, None]], -1).expand(2, 12, 4, 6) for c in connections(model)]
    moved = torch.stack([torch.cat([a, b[..., None]], -1) for a, b in zip(alphas, betas, strict=True)])
    moved = (moved - torch.stack(static)).norm() / torch.stack(static).double().norm()

    values = health(model, tokens())

    assert values["forward_gain"] == pytest.approx(max(forward), rel=1e-5)
    assert values["backward_gain"] == pytest.approx(max(backward), rel=1e-5)
    assert values["second_singular_value"] == pytest.approx(sum(second[:24]) / 24, rel=1e-5)
    assert values["effective_rank"] == pytest.approx(torch.special.entr(parts).sum(-1).exp().median().item(), rel=1e-4)
    assert values["alpha_spread"] == pytest.approx(max(a.max() for a in alphas) - min(a.min() for a in alphas))
    assert values["beta_spread"] == pytest.approx(max(b.max() for b in betas) - min(b.min() for b in betas))
    assert values["dynamic_size"] == pytest.approx(moved.item(), rel=1e-4)
    assert (values["dynamic_size"] > 0.01) == (variant != "SHC")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cosine_is_the_one_that_analysis_measures(variant: str) -> None:
    model = trained(variant, num_hidden_layers=1)  # two blocks, one cosine
    window = tokens().reshape(1, -1)[:, :23]  # an odd number of tokens has one median
    expected = measure(model, [window]).layers["similarity"].dropna().item()

    assert health(model, window)["input_cosine"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_magnitudes_are_those_of_the_streams_that_analysis_records(variant: str) -> None:
    model = trained(variant)

    assert stream_magnitudes(model, tokens()) == record(model, tokens()).streams.abs().amax((1, 2, 3, 4)).tolist()


def test_adapters_and_compiled_models_are_looked_through_and_other_models_have_no_values() -> None:
    model = trained("DHC")
    before = health(model, tokens())
    config = LoraConfig(target_modules="all-linear", modules_to_save=["attn_hc", "mlp_hc"], task_type="CAUSAL_LM")

    model.compile(backend="eager")
    model(tokens())
    assert health(model, tokens()) == before
    assert health(get_peft_model(model, config), tokens()) == pytest.approx(before)
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=99))
    assert health(gpt2, tokens()) == {}


def train(folder: Path, variant: str, watched: bool, model: PreTrainedModel | None = None, **fields) -> Trainer:
    torch.manual_seed(2)
    texts = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 99, (24, 8))]
    fields = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "learning_rate": 1e-2} | fields
    args = TrainingArguments(
        str(folder), max_steps=6, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **fields
    )
    model = model or trained(variant, attention_dropout=0.2)
    trainer = Trainer(model, args, train_dataset=texts, eval_dataset=texts[:4])
    if watched:
        trainer.add_callback(ConnectionHealth(trainer, tokens()))
    trainer.train()
    return trainer


@pytest.mark.parametrize("variant", ["DHC", "SHC", "residual", "DHC compiled"])
def test_training_is_the_same_bit_for_bit_with_and_without_the_callback(variant: str, tmp_path: Path) -> None:
    variant, *compiled = variant.split()
    fields = {"torch_compile_backend": "eager"} if compiled else {}
    watched = train(tmp_path, variant, True, **fields)
    random = torch.get_rng_state()
    plain = train(tmp_path, variant, False, **fields)

    assert torch.equal(torch.get_rng_state(), random)
    for one, two in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.model.modules())
    health_entries = [entry for entry in watched.state.log_history if "health_input_cosine" in entry]
    others = [entry for entry in watched.state.log_history if "health_input_cosine" not in entry]
    assert [entry["step"] for entry in health_entries] == [2, 3, 4, 6]
    assert len(health_entries[0]) == (10 if variant != "residual" else 3)

    def losses(entries: list[dict[str, float]]) -> list[tuple[float | None, float | None]]:
        return [(entry.get("loss"), entry.get("eval_loss")) for entry in entries]

    assert losses(others) == losses(plain.state.log_history)


class AveragingTrainer(Trainer):
    """Keeps averages of its steps for the next log entry, as TRL's trainers do."""

    def training_step(self, *args, **kwargs) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.kept = [*getattr(self, "kept", []), loss.item()]
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if getattr(self, "kept", None):
            logs = logs | {"average": sum(self.kept) / len(self.kept)}
            self.kept = []
        super().log(logs, *args, **kwargs)


@pytest.mark.parametrize("variant", ["residual", "DHC"])
@pytest.mark.report(24, "ConnectionHealth beside TRL's averages")
def test_averages_that_a_trainer_keeps_for_its_log_stay_in_their_entries(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Callable
) -> None:
    monkeypatch.setitem(globals(), "Trainer", AveragingTrainer)
    entries = [train(tmp_path, variant, watched).state.log_history for watched in (False, True)]
    averages = [
        [(entry["step"], entry["average"], "loss" in entry) for entry in log if "average" in entry] for log in entries
    ]
    outcome(*(f"averages beside the loss: {sum(beside for *_, beside in found)}" for found in averages))
    assert averages[0] == averages[1]
    assert any("health_input_cosine" in entry for entry in entries[1])


def test_a_carry_that_amplifies_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = trained("SHC")
    with torch.no_grad():
        for connection in connections(model):
            connection.alpha_bias[:, 1:] = 3 * torch.eye(4)  # 3^6 over three layers
    with caplog.at_level(logging.WARNING):
        train(tmp_path, "SHC", True, model, logging_steps=1, learning_rate=1e-5)

    told = [r.getMessage() for r in caplog.records if r.name == "modeling_hc.health"]
    assert len(told) == 2
    assert told[0].startswith("Step 1: forward_gain of the hyper-connections is 729, over 300")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_coefficient_that_is_not_finite_is_told(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained("SHC")
    with torch.no_grad():
        connections(model)[1].alpha_bias[0, 1] = value
    with caplog.at_level(logging.WARNING):
        train(tmp_path, "SHC", True, model, eval_strategy="no")

    told = [record.getMessage() for record in caplog.records if "are not finite" in record.getMessage()]
    assert len(told) == 1 and "alpha_spread" in told[0]
