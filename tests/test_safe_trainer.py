# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/safe_trainer.py beside the stock Trainer: steps on NaN, checkpoints, rotation. Kills: test_faults.py."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_modeling_hc_llama
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from modeling_hc import HCOlmoeConfig, HCOlmoeForCausalLM
from modeling_hc.training.safe_trainer import (
    SKIPS_IN_A_ROW,
    UNFINISHED,
    NonFiniteError,
    ResumeError,
    SafeTrainer,
    SaveError,
)

ROOT = Path(__file__).parents[1]

LLAMA = test_modeling_hc_llama.TestHCLlama()


def make(folder: Path, kind: type[Trainer] = SafeTrainer, residual: bool = False, **fields: Any) -> Trainer:
    torch.manual_seed(2)
    texts = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 99, (40, 8))]
    extra = {"on_nonfinite": fields.pop("on_nonfinite")} if "on_nonfinite" in fields else {}
    defaults = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_steps": 1, "learning_rate": 1e-2}
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True, **defaults | fields
    )
    config = LLAMA.parent_config if residual else LLAMA.config
    model = AutoModelForCausalLM.from_config(config(attention_dropout=0.1))
    return kind(model, args, train_dataset=texts, eval_dataset=texts[:4], **extra)


class At(TrainerCallback):
    """Does something at the beginning of some steps, counted from 1, and looks at the weights at their end."""

    def __init__(self, trainer: Trainer, steps: set[int], action: Callable[[], Any]) -> None:
        self.trainer, self.steps, self.action = trainer, steps, action
        self.before: list[Tensor] = []
        self.unchanged: dict[int, bool] = {}

    def snapshot(self) -> list[Tensor]:
        state = self.trainer.optimizer.state_dict()["state"]
        tensors = [*self.trainer.model.parameters(), *(value for entry in state.values() for value in entry.values())]
        return [tensor.detach().clone() for tensor in tensors]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = self.snapshot()
        self.undo = self.action() if state.global_step + 1 in self.steps else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        after = self.snapshot()
        self.unchanged[state.global_step] = len(after) == len(self.before) and all(
            map(torch.equal, after, self.before)
        )
        if self.undo is not None:
            self.undo.remove()


def nan_gradient(trainer: Trainer, name: str = "model.layers.1.mlp_hc.alpha_bias") -> Callable[[], Any]:
    return lambda: trainer.model.get_parameter(name).register_hook(lambda gradient: gradient * torch.nan)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step_and_is_found(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    callback = At(trainer, {3}, nan_gradient(trainer))
    trainer.add_callback(callback)

    with pytest.raises(NonFiniteError) as error:
        trainer.train()

    message = str(error.value)
    assert message.startswith("Step 3 is not finite. Loss: 2.")
    total = sum(p.grad is not None for p in trainer.model.parameters())
    assert (
        f"finite: 1 of {total}, the first of model.layers.1.mlp_hc.alpha_bias (in 20 of 20 numbers), the last of "
        "model.layers.1.mlp_hc.alpha_bias." in message
    )
    assert re.search(r"streams that blocks read: 1 attention 0\.\d+, 2 MLP 0\.\d+, .*, 6 MLP 0\.\d+\.", message)
    assert "\n" not in message
    assert all(map(torch.equal, callback.snapshot(), callback.before))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_a_skipped_step_leaves_weights_and_optimizer_bit_for_bit_and_the_others_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, on_nonfinite="skip", save_strategy="no")
    callback = At(trainer, {3}, nan_gradient(trainer))
    trainer.add_callback(callback)
    with caplog.at_level(logging.WARNING):
        trainer.train()

    assert callback.unchanged == {1: False, 2: False, 3: True, 4: False, 5: False}
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    told = [record.getMessage() for record in caplog.records if record.name == "modeling_hc.training.safe_trainer"]
    assert len(told) == 1 and told[0].startswith("Step 3 is not finite.") and told[0].endswith("The step is skipped.")


def test_a_model_that_is_lost_ends_the_run_though_steps_are_skipped(tmp_path: Path) -> None:
    trainer = make(tmp_path, on_nonfinite="skip", max_steps=20, save_strategy="no")
    trainer.add_callback(At(trainer, set(range(2, 21)), nan_gradient(trainer)))

    with pytest.raises(NonFiniteError, match=f"Step {SKIPS_IN_A_ROW + 2} .*the model is lost"):
        trainer.train()


@pytest.mark.parametrize("residual", [False, True])
def test_an_overflow_is_told_with_the_block_whose_streams_it_reached(residual: bool, tmp_path: Path) -> None:
    trainer = make(tmp_path, residual=residual, save_strategy="no")
    with torch.no_grad():
        trainer.model.model.layers[1].mlp.down_proj.weight.mul_(1e39)

    with pytest.raises(NonFiniteError) as error:
        trainer.train()

    message = str(error.value)
    assert "Step 1 is not finite. Loss: nan, nan." in message
    streams = message.partition("blocks read: ")[2]
    assert "inf" not in streams.partition("5 attention")[0] and "nan" not in streams.partition("5 attention")[0]
    assert "5 attention inf" in streams or "5 attention nan" in streams


def test_under_a_loss_scaler_only_the_loss_stops_the_run(tmp_path: Path) -> None:
    """fp16 itself needs a GPU; its scaler does not."""
    trainer = make(tmp_path, save_strategy="no")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    callback = At(trainer, {2}, nan_gradient(trainer))
    trainer.add_callback(callback)
    trainer.train()
    assert callback.unchanged == {1: False, 2: True, 3: False, 4: False, 5: False}  # which the scaler does

    trainer = make(tmp_path, save_strategy="no", on_nonfinite="skip")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")

    def infinite(module: Any, args: Any, output: Any) -> None:
        if output.loss is not None:
            output.loss = output.loss * torch.inf

    callback = At(trainer, {2}, lambda: trainer.model.register_forward_hook(infinite))
    trainer.add_callback(callback)
    trainer.train()
    assert callback.unchanged == {1: False, 2: True, 3: False, 4: False, 5: False}


@pytest.mark.parametrize(
    "fields", [{}, {"save_total_limit": 2}, {"save_total_limit": 1, "load_best_model_at_end": True}]
)
def test_it_trains_and_leaves_what_the_stock_trainer_does(fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {"eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.3, "max_steps": 3} | fields
    trainers = []
    for kind in (SafeTrainer, Trainer):
        trainer = make(tmp_path / kind.__name__, kind, **fields)
        trainer.train()
        trainers.append(trainer)

    assert all(map(torch.equal, trainers[0].model.parameters(), trainers[1].model.parameters()))
    left = [{path.relative_to(t.args.output_dir) for path in Path(t.args.output_dir).rglob("*")} for t in trainers]
    assert left[0] == left[1]
    best, stock_best = (trainer.state.best_model_checkpoint for trainer in trainers)
    assert (best is None) == (stock_best is None)
    if best:
        assert Path(best).name == Path(stock_best).name
        assert json.loads((Path(best) / "trainer_state.json").read_text())["best_model_checkpoint"] == best


def test_what_cannot_be_written_gives_its_room_back_and_leaves_the_checkpoints(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    save = trainer._save_rng_state

    def full(folder: str) -> None:
        if trainer.state.global_step == 3:
            raise OSError(28, "No space left on device")
        save(folder)

    trainer._save_rng_state = full
    with pytest.raises(SaveError, match=r"checkpoint-3 cannot be written .*No space left"):
        trainer.train()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / UNFINISHED).exists()


def test_a_run_resumed_after_its_last_step_takes_no_other_and_ends_its_rotation(tmp_path: Path) -> None:
    trainer = make(tmp_path, save_steps=4)
    trainer.train()
    again = make(tmp_path, save_steps=4, save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    again.publish()

    assert again.state.global_step == 5
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    assert all(map(torch.equal, again.model.parameters(), trainer.model.parameters()))


def test_a_resumed_model_with_experts_has_the_weights_of_its_checkpoint(tmp_path: Path) -> None:
    """Checkpoints have each expert by itself, the model has all in one tensor; upstream's resume loads neither."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = HCOlmoeConfig(
        **sizes, vocab_size=20, num_experts=4, num_experts_per_tok=2, pad_token_id=0, eos_token_id=1
    )
    samples = [{"input_ids": ids, "labels": ids} for ids in torch.arange(240).view(16, 15) % 20]
    fields = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4, "learning_rate": 0.01}

    def trained(resume: bool) -> dict[str, Tensor]:
        set_seed(0)
        args = TrainingArguments(tmp_path, **fields, max_steps=4, save_steps=2, disable_tqdm=True)
        trainer = SafeTrainer(HCOlmoeForCausalLM(config), args, train_dataset=samples)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        return trainer.model.state_dict()

    whole, resumed = trained(resume=False), trained(resume=True)

    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_a_run_that_sigterm_stops_at_an_evaluation_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """An evaluation draws a random number; dropout would go on with others without it."""
    fields = {"eval_strategy": "steps", "eval_steps": 2}
    whole = make(tmp_path / "whole", **fields)
    whole.train()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        stopped = make(tmp_path / "run", **fields | {"save_steps": 100})
        stopped.add_callback(At(stopped, {2}, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        stopped.train()
        resumed = make(tmp_path / "run", **fields)
        resumed.train(resume_from_checkpoint=True)
    finally:
        signal.signal(signal.SIGTERM, handler)

    assert stopped.sigterm.stopped and stopped.state.global_step == 2
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_is_named_when_a_run_is_resumed(name: str, tmp_path: Path) -> None:
    make(tmp_path, max_steps=1).train()
    path = tmp_path / "checkpoint-1" / name
    path.write_bytes(path.read_bytes()[:50])

    with pytest.raises(ResumeError, match=r"checkpoint-1 cannot be read: .* Delete it"):
        make(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_no_checkpoint_is_written_while_steps_are_skipped(tmp_path: Path) -> None:
    trainer = make(tmp_path, on_nonfinite="skip")
    trainer.add_callback(At(trainer, {3, 4}, nan_gradient(trainer)))
    trainer.train()

    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2", "checkpoint-5"}
