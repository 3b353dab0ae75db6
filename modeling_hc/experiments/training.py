# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""One run of an experiment: its model, its Trainer, and what is kept of it."""

import json
import math
import platform
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..analysis.recording import connections
from ..health import health
from ..hyper_connections import CONNECTIONS, JointHyperConnection
from ..losses import block_sums
from ..records import command_line, versions, write_json
from ..training.safe_trainer import UNFINISHED, SafeTrainer, last_checkpoint
from .results import FILE, find_run, save_run
from .setup import Experiment, Tokens, Variant

CPU = not torch.accelerator.is_available()
FINISHED, PAUSED = "finished", "paused"
MADE_FROM = "made-from.json"
MEASURES = ("bits_per_byte", "accuracy")
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


class ExperimentTrainer(SafeTrainer):
    """A SafeTrainer that exempts a variant's `undecayed` parameters from weight decay."""

    undecayed: str | None = None

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not (self.undecayed and re.search(self.undecayed, name))]


class Notes(TrainerCallback):
    """Logs training time and connection health, and stops the run at a deadline.

    Args:
        inputs: token ids or pixels, for `health`.
        deadline: of `time.monotonic`; then the run is saved and stops.
    """

    def __init__(self, inputs: torch.Tensor, deadline: float) -> None:
        self.inputs = inputs
        self.deadline = deadline
        self.seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._start
        if is_late(self.deadline) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = round(self.seconds, 3)

    def on_evaluate(
        self, args: TrainingArguments, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any
    ) -> None:
        values = {name: round(value, 5) for name, value in health(model, self.inputs).items()}
        state.log_history[-1]["health"] = values


def is_late(deadline: float) -> bool:
    """Returns whether the main process is beyond a deadline; all processes get its answer."""
    return deadline < math.inf and broadcast_object_list([time.monotonic() > deadline])[0]


class Bar(TrainerCallback):
    """One line of progress; the Trainer's own would print every step's loss."""

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        label = args.run_name if state.is_world_process_zero else None
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=label, disable=label is None, leave=False
        )

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        self.bar.set_postfix({key: f"{logs[key]:.3f}" for key in ("loss", "eval_nll") if key in logs})

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def auto_class(experiment: Experiment) -> Any:
    return AutoModelForImageClassification if experiment.of_images else AutoModelForCausalLM


def make_model(experiment: Experiment, name: str, seed: int, work: Path) -> PreTrainedModel:
    """Builds a variant's model, or loads the one that the experiment starts from into its configuration."""
    variant = experiment.variants[name]
    config = experiment.config(name)
    set_seed(seed)
    if experiment.start is None:
        model = auto_class(experiment).from_config(config)
    else:
        start = work / f"{experiment.start}-s{seed}"
        if not (start / "model.safetensors").exists():
            raise ValueError(f"{experiment.name} starts from {start}, which is not there: run that experiment first.")
        model = auto_class(experiment).from_pretrained(start, config=config, dtype=torch.float32)
    if not variant.home_stream:
        for connection in connections(model):
            n = connection.num_streams
            with torch.no_grad():
                connection.get_parameter("bias")[:n] = -math.log(n - 1)
    for key, parameter in model.named_parameters():
        if variant.freeze and re.search(variant.freeze, key):
            parameter.requires_grad_(False)
    return model


def check_patterns(experiment: Experiment, names: Iterable[str]) -> None:
    """Looks before the first run whether `freeze`, `undecayed` and `home_stream` of these variants fit their models.

    Raises:
        ValueError: a pattern matches no parameter, `freeze` matches all, or no connection has a home stream.
    """
    for name in names:
        variant = experiment.variants[name]
        config = experiment.config(name)
        connection = CONNECTIONS.get(getattr(config, "connection", "none"), nn.Module)
        if not (variant.home_stream or issubclass(connection, JointHyperConnection)):
            raise ValueError(f"home_stream=false of variant {name} is for the joint variants, such as connection=mhc.")
        if not (variant.freeze or variant.undecayed):
            continue
        with torch.device("meta"):
            keys = [key for key, _ in auto_class(experiment).from_config(config).named_parameters()]
        for field in ("freeze", "undecayed"):
            pattern = getattr(variant, field)
            matched = sum(bool(re.search(pattern, key)) for key in keys) if pattern else None
            if matched == 0 or (field == "freeze" and matched == len(keys)):
                many = "every" if matched else "no"
                raise ValueError(
                    f"{field}={pattern!r} of variant {name} matches {many} parameter, such as {keys[-1]}."
                )


def make_trainer(
    experiment: Experiment, name: str, seed: int, tokens: Tokens, work: Path, deadline: float
) -> ExperimentTrainer:
    """Builds the trainer of one run. Runs of a seed see the same blocks in the same order."""
    variant = experiment.variants[name]
    processes = PartialState().num_processes
    if experiment.batch_size % processes:
        raise ValueError(f"batch_size={experiment.batch_size} of {experiment.name} cannot be shared by {processes}.")
    every = experiment.steps // experiment.evaluations
    args = TrainingArguments(
        **{
            "output_dir": str(work / experiment.name / f"{name}-s{seed}"),
            "run_name": f"{experiment.name} {name} seed {seed}",
            "seed": seed,
            "max_steps": experiment.steps,
            "per_device_train_batch_size": experiment.batch_size // processes,
            "per_device_eval_batch_size": experiment.batch_size // processes,
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_steps": 4 * every,
            "save_total_limit": 1,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "report_to": "none",
            "use_cpu": CPU,
            "ddp_find_unused_parameters": False,
            **experiment.training,
            **variant.training,
        }
    )
    main_text = next(iter(tokens.validation))
    held_out = experiment.blocks(tokens.validation[main_text], experiment.eval_blocks)
    model = make_model(experiment, name, seed, work)
    for_health = torch.stack([held_out[i][model.main_input_name] for i in range(min(4, len(held_out)))])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nll, correct, count = prediction.predictions.sum(0, dtype=np.float64)
        return {"nll": nll / count} | also(tokens, main_text, nll / count, correct / count)

    trainer = ExperimentTrainer(
        model=model,
        args=args,
        train_dataset=experiment.blocks(tokens.train),
        eval_dataset=held_out,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=block_sums,
        callbacks=[Notes(for_health, deadline), Bar()],
    )
    trainer.undecayed = variant.undecayed
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def also(tokens: Tokens, text: str, nll: float, accuracy: float) -> dict[str, float]:
    """Returns the measure that a report shows beside the loss: bits per byte of a text, or accuracy on images."""
    if text in tokens.tokens_per_byte:
        return {"bits_per_byte": nll / math.log(2) * tokens.tokens_per_byte[text]}
    return {"accuracy": accuracy}


def run_one(
    experiment: Experiment, name: str, seed: int, tokens: Tokens, work: Path, results: Path, deadline: float
) -> str:
    """Trains one variant with one seed, on from its last checkpoint, and saves its numbers when it is done."""
    trainer = make_trainer(experiment, name, seed, tokens, work, deadline)
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        write_json(folder / MADE_FROM, settings(experiment, name))
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if trainer.state.global_step < experiment.steps:
        return PAUSED
    history = list(trainer.state.log_history)
    trainer.save_model()
    final = {}
    for text, ids in tokens.validation.items():
        blocks = experiment.blocks(ids, experiment.final_blocks)
        metrics = trainer.evaluate(blocks)
        loss, accuracy = metrics["eval_nll"], metrics.get("eval_accuracy", math.nan)
        final[text] = {"loss": loss, **also(tokens, text, loss, accuracy)}
        if experiment.of_images:
            final[text]["images"] = len(blocks)
        else:
            final[text]["tokens"] = len(blocks) * (experiment.block_size - 1)
    if trainer.is_world_process_zero():
        save_run(results, describe(experiment, name, seed, trainer, history, final))
    return FINISHED


def settings(experiment: Experiment, name: str) -> dict[str, Any]:
    """Returns what makes a variant's runs what they are."""
    variant: Variant = experiment.variants[name]
    tokens_per_step = experiment.batch_size * experiment.block_size
    return {
        "settings": {"start": experiment.start, **asdict(variant)},
        "model": json.loads(json.dumps(experiment.config(name).to_diff_dict())),  # numbers of classes become text
        "training": experiment.training | variant.training,
        "tokens": experiment.steps * tokens_per_step,
        "tokens_per_step": tokens_per_step,
    }


def check_same(experiment: Experiment, name: str, before: dict[str, Any], place: str, remove: str) -> None:
    """Compares the settings of an earlier run with the experiment's; of other versions' fields those that both have.

    Args:
        experiment: as it is now.
        name: of the variant.
        before: what was kept of the earlier run.
        place: where that was, for the message.
        remove: what to delete to repeat the run, for the message.

    Raises:
        ValueError: they differ.
    """
    before, now = dict(before), settings(experiment, name)
    before["settings"] = asdict(Variant()) | before["settings"]
    for part in ("model", "training"):
        both = (before[part].keys() & now[part].keys()) - {"transformers_version"}
        before[part], now[part] = ({key: values[part][key] for key in sorted(both)} for values in (before, now))
    for part, value in now.items():
        if before[part] != value:
            raise ValueError(
                f"{place} is of a run with {part} {before[part]}, and {experiment.name} now has {value}. Give what "
                f"changed another name, or delete {remove}."
            )


def check_earlier(experiment: Experiment, name: str, seed: int, results: Path, work: Path) -> None:
    """Looks whether the numbers and checkpoints of a run, where there are any, are of the experiment as it is now.

    Raises:
        ValueError: they are not.
    """
    if result := find_run(results, experiment.name, name, seed):
        check_same(experiment, name, result, f"{name}-s{seed} in {results / experiment.name / FILE}", "its line")
    path = work / experiment.name / f"{name}-s{seed}" / MADE_FROM
    if path.exists():
        check_same(experiment, name, json.loads(path.read_text(encoding="utf-8")), str(path), str(path.parent))


def describe(
    experiment: Experiment, name: str, seed: int, trainer: Trainer, history: list[dict], final: dict[str, Any]
) -> dict[str, Any]:
    """Returns everything that is kept of a run."""
    made_from = settings(experiment, name)
    blocks = len(trainer.train_dataset)
    evaluations = [
        {
            "tokens": entry["step"] * made_from["tokens_per_step"],
            "seconds": entry["seconds"],
            "loss": round(entry["eval_nll"], 6),
            **{key: round(entry[f"eval_{key}"], 6) for key in MEASURES if f"eval_{key}" in entry},
            "health": entry["health"],
        }
        for entry in history
        if "eval_nll" in entry
    ]
    return {
        "experiment": experiment.name,
        "variant": name,
        "seed": seed,
        **made_from,
        "parameters": trainer.model.num_parameters(),
        "epochs": round(experiment.steps * experiment.batch_size / blocks, 3),
        "final": final,
        "evaluations": evaluations,
        "losses": [round(entry["loss"], 4) for entry in history if "loss" in entry],
        "command": command_line(),
        "processes": trainer.args.world_size,
        "machine": machine(),
        "versions": versions(*PACKAGES),
    }


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"{platform.system()} {platform.machine()}, {device}"
