# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The fields of `modeling-hc train`, and how they are read and checked."""

import argparse
import json
import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments, get_scheduler

from ..data import DataArguments
from ..model_card_hc import plain
from ..recipes import find_recipe, suggestion
from ..records import read_yaml


@dataclass
class StartArguments:
    """What to train: exactly one of `config` and `model_name_or_path`."""

    config: str | None = field(default=None, metadata={"help": "Recipe of a model to train from scratch."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to train on from."})
    hyper_connect: bool = field(
        default=False,
        metadata={
            "help": "Give a residual checkpoint hyper-connections. Its streams are then reduced by their mean, so "
            "that training starts from the checkpoint's exact outputs."
        },
    )
    recompute_streams: bool = field(
        default=False,
        metadata={
            "help": "Make most residual streams again for the backward pass instead of keeping them: the same numbers "
            "with less memory, in less time than with gradient_checkpointing. Compiled models ignore it."
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of the model to change, such as num_streams=4,connection=dynamic."}
    )


@dataclass
class ModelArguments(StartArguments):
    """What to train, and which part of it where."""

    tensor_parallel: bool = field(
        default=False,
        metadata={
            "help": "Split the matrices of a checkpoint over all processes, which then share each batch. It cannot be "
            "resumed: save_strategy=no, or save_only_model=true."
        },
    )
    lora_r: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on every linear layer, and the hyper-connections whole, instead "
            "of all parameters. The run folder then holds the adapter, which peft loads onto the checkpoint."
        },
    )


@dataclass
class SafeTrainingArguments(TrainingArguments):
    """TrainingArguments plus `on_nonfinite`."""

    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "What to do if a loss or a gradient is not finite: stop the run before the step, or skip it, "
            "which leaves weights and optimizer as they were. Either tells where it was found."
        },
    )


# The fields that say where the data are, which exclude each other.
ON_HUB = ("dataset_name", "dataset_config", "dataset_config_name")
LOCAL = ("train_files", "validation_files", "train_dir", "validation_dir")

# The fields of TrainingArguments that `--help` shows; `--help-all` shows all.
COMMON = {
    *("output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *(
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
        "bf16",
        "use_cpu",
    ),
    *("torch_compile", "activation_checkpointing", "logging_steps", "report_to", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
}


class HelpAll(argparse.Action):
    """Prints the help of every field."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        print(HfArgumentParser.format_help(parser), end="")
        parser.exit()


class Parser(HfArgumentParser):
    """Reads dataclasses, the last of them TrainingArguments or a subclass, from flags."""

    def __init__(self, dataclass_types: tuple[type, ...], **options: Any) -> None:
        super().__init__(dataclass_types, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--help-all", action=HelpAll, nargs=0, default=argparse.SUPPRESS, help="show every field")

    def format_help(self) -> str:
        """Leaves the rarer fields of TrainingArguments out: they are over a hundred."""
        rare = {field.name for field in fields(TrainingArguments)} - COMMON
        for action in self._actions:
            if action.dest.removeprefix("no_") in rare:
                action.help = argparse.SUPPRESS
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Without upstream's usage, which is hundreds of lines long."""
        raise ValueError(f"{message.rstrip('.')}. `{self.prog} --help-all` lists every field.")

    def read(self, flags: list[str]) -> list[Any]:
        """Returns the dataclasses that flags fill; rejects unknown flags, and values that would fail in training."""
        *arguments, unknown = self.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            name = unknown[0].lstrip("-").partition("=")[0]
            known = [action.dest for action in self._actions]
            raise ValueError(f"There is no field {name!r}{suggestion(name, known)} --help-all lists every field.")
        _check_training(arguments[-1])
        return arguments

    def flags(self, values: dict[str, Any]) -> list[str]:
        """Returns the flags of a YAML file's fields."""
        whole_numbers = {action.dest for action in self._actions if action.type is int}
        flags = []
        for name, value in values.items():
            if isinstance(value, list):
                flags += [f"--{name}", *map(str, value)]
                continue
            if isinstance(value, dict):
                value = json.dumps(plain(value))
            elif value is False:  # what YAML makes of `no`, which is also a name, as in eval_strategy
                value = "no"
            elif isinstance(value, float) and value.is_integer() and name in whole_numbers:  # 1e5
                value = int(value)
            flags += [] if value is None else [f"--{name}={value}"]
        return flags


def _check_training(args: TrainingArguments) -> None:
    if args.batch_eval_metrics:
        raise ValueError("batch_eval_metrics=true is not supported, for metrics are computed at once. Leave it out.")
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
        scheduler = get_scheduler(args.lr_scheduler_type, optimizer, 0, 10**6, args.lr_scheduler_kwargs)
        for factor in getattr(scheduler, "lr_lambdas", []):
            factor(1)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs={args.lr_scheduler_kwargs} does not suit lr_scheduler_type="
            f"{plain(args.lr_scheduler_type)} with learning_rate={args.learning_rate}: {' '.join(str(error).split())}"
        ) from error


def parse(
    argv: list[str],
    dataclass_types: tuple[type, ...] = (ModelArguments, DataArguments, SafeTrainingArguments),
    recipes: str = "training",
    description: str = "Trains a language model: from a recipe, or on from a checkpoint.",
) -> tuple[Any, ...]:
    """Reads the fields from a YAML file or recipe, if the first argument names one, and from flags, which win.

    A flag for local data also wins over a recipe's data on the Hub, and the other way round.

    Args:
        argv: the arguments of the command line.
        dataclass_types: what to fill, `SafeTrainingArguments` last.
        recipes: the kind of the recipes, see `find_recipe`.
        description: what the command does.
    """
    parser = Parser(
        dataclass_types,
        allow_abbrev=False,
        usage="%(prog)s [RECIPE or YAML FILE] [--FIELD VALUE ...]",
        description=description,
        epilog="--help-all lists every field of transformers.TrainingArguments. YAML files take all of them.",
    )
    flags = []
    if argv and not argv[0].startswith("-"):
        path, *argv = argv
        try:
            values = read_yaml(find_recipe(recipes, path).read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"Cannot read {path}: {reason}. The first argument is a YAML file of fields.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold `field: value` lines, and holds a {type(values).__name__}.")
        given = {flag.lstrip("-").partition("=")[0] for flag in argv}
        for names, others in (({"dataset_name"}, LOCAL), ({"train_files", "train_dir"}, ON_HUB)):
            if given & names:
                values = {name: value for name, value in values.items() if name not in others}
        flags = parser.flags(values)
    arguments = parser.read([*flags, *argv])
    started, used = int(os.environ.get("WORLD_SIZE", 1)), arguments[-1].world_size
    if started != used:
        raise ValueError(
            f"{started} processes were launched, but transformers finds {used}: there is no accelerator for each, and "
            "they would all train the same by themselves. To share the work on a CPU add --use_cpu true."
        )
    return tuple(arguments)
