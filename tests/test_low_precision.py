# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Whatever casts a model or its adapters, the parameters of hyper-connections are fp32 when they are trained."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

from modeling_hc import hyper_connections
from modeling_hc.data import stdlib_files, train_tokenizer
from modeling_hc.hyper_connections import HyperConnection

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ADAPTER = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["attn_hc", "mlp_hc"], task_type="CAUSAL_LM")


def make(model_type: str = "hc_llama", **fields: object) -> PreTrainedModel:
    set_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **fields))


def moved() -> PreTrainedModel:
    """A model whose connections have values that bf16 cannot hold."""
    model = make()
    with torch.no_grad():
        for parameter in connections(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def connections(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of hyper-connections; of adapted ones those that are trained."""
    names = {name: p for name, p in model.named_parameters() if "_hc." in name and p.requires_grad}
    assert names
    return names


def ones(model: nn.Module) -> Tensor:
    """The coefficients that start at 1."""
    found = []
    for module in model.modules():
        if isinstance(module, HyperConnection) and module.alpha_bias.requires_grad:
            start = module.initial_values()
            found += [module.get_parameter(name)[start[name] == 1] for name in ("alpha_bias", "beta_bias")]
    return torch.cat(found).detach().clone()


CASTS = {
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "to(cpu, float16)": lambda model: model.to("cpu", torch.float16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "type": lambda model: model.type(torch.bfloat16),
    "the whole in a wrapper": lambda model: nn.Sequential(model).half()[0],
}


@pytest.mark.report(27, "model.to(torch.bfloat16), model.half() and the like")
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_model_that_is_cast_keeps_its_connections_to_the_last_bit(
    cast: Callable[[nn.Module], nn.Module], outcome: Callable
) -> None:
    model, ids = moved(), torch.arange(40)[None]
    expected, before = model(ids).logits, copy.deepcopy(model.state_dict())

    low = cast(model)

    for name, parameter in low.named_parameters():
        if "_hc." in name:
            assert parameter.dtype == torch.float32, name
            assert torch.equal(parameter, before[name]), name
        else:
            assert parameter.itemsize == 2, name
    error = (low(ids).logits.float() - expected).norm() / expected.norm()
    assert error < 0.05
    outcome("all parameters cast", f"all but the connections; logits differ by {error:.1%}")


def test_wider_dtypes_devices_and_empty_copies_are_those_that_were_asked_for() -> None:
    model = moved()
    model(torch.arange(40)[None]).logits.sum().backward()
    parameters = connections(model)
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float64}
    assert {p.dtype for p in model.float().parameters()} == {torch.float32}
    assert all(p is parameters[name] for name, p in connections(model).items())  # an optimizer still has them
    model.half()
    assert {p.grad.dtype for p in connections(model).values()} == {torch.float32}
    on_meta = copy.deepcopy(model).to("meta")
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    empty = on_meta.to_empty(device="cpu")
    assert {p.device.type for p in empty.parameters()} == {"cpu"}
    assert {p.dtype for p in connections(empty).values()} == {torch.float32}
    empty.load_state_dict(model.state_dict())
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in empty.named_parameters())


def test_a_model_made_while_another_dtype_is_the_default_has_fp32_connections() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as vLLM does
    try:
        model = make()
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in connections(model).values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16


def cast_what_is_trained(model: nn.Module) -> None:
    """As TRL's trainers do with the adapters of a quantized model."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


class QuantizedModelArguments(TrainingArguments):
    place_model_on_device = False  # as the Trainer decides for a quantized model


def train(model: nn.Module, folder: Path) -> list[float]:
    """Trains 20 steps with the stock Trainer, as TRL does once its trainer is made. Returns the losses."""
    set_seed(0)
    tokens = (torch.randint(318, (80, 1)) + torch.arange(32)) % 318 + 2
    args = QuantizedModelArguments(
        folder,
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=2e-4,
        logging_steps=5,
        use_cpu=True,
        bf16=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=args, train_dataset=[{"input_ids": t, "labels": t} for t in tokens])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.report(27, "adapters cast to bf16 before training, with the connections in modules_to_save")
def test_connections_that_were_cast_with_the_adapters_learn_as_in_fp32(tmp_path: Path, outcome: Callable) -> None:
    def adapted(model_type: str = "hc_llama", adapter: LoraConfig = ADAPTER) -> PeftModel:
        return get_peft_model(make(model_type).to(torch.bfloat16), copy.deepcopy(adapter))

    reference, model = adapted(), adapted()
    stock = adapted("llama", LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for cast in (model, stock):
        cast_what_is_trained(cast)
    stock_losses = train(stock, tmp_path)
    losses, expected = train(model, tmp_path), train(reference, tmp_path)
    coefficients, wanted = ones(model), ones(reference)

    assert len(coefficients) == 72
    assert (coefficients != 1).all()
    assert (coefficients - wanted).norm() < 0.2 * (wanted - 1).norm()
    assert {p.dtype for p in connections(model).values()} == {torch.float32}
    assert losses == pytest.approx(expected, abs=2e-3)
    outcome(f"last loss {stock_losses[-1]:.3f}", f"last loss {losses[-1]:.3f}, 72 of 72 coefficients moved")


@pytest.mark.parametrize("quantized", ["4bit", "8bit"])
@pytest.mark.report(27, "TRL's SFTTrainer with a quantized model and the connections in modules_to_save")
def test_trl_trains_the_connections_of_a_quantized_model(quantized: str, tmp_path: Path, outcome: Callable) -> None:
    trl = pytest.importorskip("trl")
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tokenizer = train_tokenizer([path.read_text("utf-8")[:3000] for path in stdlib_files("train")[:20]], 320)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = Dataset.from_list(
        [{"text": path.read_text(encoding="utf-8")[:300]} for path in stdlib_files("train")[:80]]
    )
    losses = {}
    for model_type in ("llama", "hc_llama"):
        make(model_type).save_pretrained(tmp_path / model_type)
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / model_type,
            dtype=torch.bfloat16,
            quantization_config=BitsAndBytesConfig(**{f"load_in_{quantized}": True}),
        )
        adapter = copy.deepcopy(ADAPTER)
        if model_type == "llama":
            adapter.modules_to_save = None
        args = trl.SFTConfig(
            tmp_path / "run",
            max_steps=20,
            max_length=64,
            per_device_train_batch_size=4,
            learning_rate=2e-4,
            logging_steps=20,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.SFTTrainer(
            model=model, args=args, train_dataset=texts, processing_class=tokenizer, peft_config=adapter
        )
        trainer.train()
        losses[model_type] = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    coefficients = ones(trainer.model)
    count = (coefficients != 1).sum().item()
    outcome(f"loss {losses['llama']:.3f}", f"loss {losses['hc_llama']:.3f}, {count} of 72 coefficients moved")
    assert count == len(coefficients) == 72
    assert abs(losses["hc_llama"] - losses["llama"]) < 0.1


def test_what_is_trained_in_low_precision_all_the_same_says_so_once() -> None:
    model = make().eval()
    cast_what_is_trained(model)
    ids = torch.arange(40)[None]
    hyper_connections._warn.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model(ids)
        assert not said  # nothing is trained
        for _ in range(2):
            model.train()(ids)
        (warning,) = said
        assert "Hyper-connections are trained in torch.bfloat16" in str(warning.message)
        hyper_connections._warn.cache_clear()
        model.to("cpu")(ids)
        assert len(said) == 1
