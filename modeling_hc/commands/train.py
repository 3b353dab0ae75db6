# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Trains a language model: from a recipe, or on from any checkpoint, with the stock Trainer.

    modeling-hc train demo --output_dir runs/mine
    accelerate launch -m modeling_hc.commands.train RECIPE [--flag value ...]

Every field of `ModelArguments`, of `DataArguments` and of `transformers.TrainingArguments` can stand in the YAML or be
a flag; flags win. The run folder gets the model, its tokenizer and card at the top, checkpoint-*, run.json (command,
versions, configuration, data), log_history.json and loss.png.

Exit status: 0 when the run is finished; 75 after SIGTERM, which ends it with a checkpoint after the step (a second
start with --resume_from_checkpoint true goes on); 1 on any error, with a message of one sentence.
"""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import evaluate
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import compare_versions
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.distributed import DistributedConfig
from transformers.utils import logging

from ..data import DataArguments, collate, load_documents, make_blocks, make_tokenizer
from ..health import ConnectionHealth
from ..hyper_connections import StreamModule
from ..loading_hc import check_has_config, is_connection, unreadable
from ..losses import block_sums, joined
from ..modeling_hc_common import HCPreTrainedModelMixin
from ..recipes import build_config, load_recipe
from ..records import program, read_yaml
from ..training import language_modeling
from ..training.arguments import ModelArguments, SafeTrainingArguments, parse
from ..training.run_folder import (
    RecordRun,
    check_folder,
    describe_run,
    earlier_commands,
    evaluation_at,
    finish,
    published_step,
)
from ..training.safe_trainer import (
    UNFINISHED,
    DataError,
    NonFiniteError,
    ResumeError,
    SafeTrainer,
    SaveError,
    last_checkpoint,
)

logger = logging.get_logger(__name__)

STOPPED = os.EX_TEMPFAIL  # 75, "try again"


def read_overrides(config_overrides: str | None) -> dict[str, Any]:
    """Returns the values of `config_overrides` by name."""
    pairs = [pair.partition("=") for pair in (config_overrides or "").split(",") if pair]
    for name, equals, _ in pairs:
        if not equals:
            raise ValueError(
                f"config_overrides={config_overrides} gives {name!r} no value: write name=value, and commas between "
                "several, such as num_streams=4,connection=dynamic."
            )
    return {name.strip(): _value(value.strip()) for name, _, value in pairs}


def model_config(args: ModelArguments) -> PreTrainedConfig:
    """Returns the configuration of the model to train."""
    overrides = read_overrides(args.config_overrides)
    if (args.config is None) == (args.model_name_or_path is None):
        raise ValueError(
            f"Give either config, a recipe to train from scratch, or model_name_or_path, a checkpoint to train on "
            f"from; got config={args.config} and model_name_or_path={args.model_name_or_path}. The recipes of `train` "
            "name a config, but for hyper-connect and lora, which train on from a checkpoint."
        )
    if args.lora_r is not None and (args.config is not None or args.hyper_connect):
        raise ValueError(
            f"lora_r={args.lora_r} adapts a checkpoint that stays as it is: give model_name_or_path, without "
            "hyper_connect; `modeling-hc convert` gives a residual checkpoint hyper-connections beforehand."
        )
    if args.config is not None:
        if args.tensor_parallel:
            raise ValueError(
                "tensor_parallel=true needs model_name_or_path: matrices are split while a checkpoint is loaded. Give "
                "an untrained one, saved with save_pretrained, to train from scratch."
            )
        if args.hyper_connect:
            raise ValueError("hyper_connect=true needs model_name_or_path; from scratch, name an hc recipe in config.")
        return load_recipe(args.config, **overrides)
    if args.tensor_parallel and compare_versions("transformers", "<", "5.23"):
        raise ValueError("tensor_parallel=true needs transformers 5.23: before, its Trainer cannot save such a model.")
    check_has_config(args.model_name_or_path)
    try:
        values, _ = PreTrainedConfig.get_config_dict(args.model_name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name_or_path={unreadable(args.model_name_or_path, error)}") from error
    if args.hyper_connect:
        residual = values.get("model_type")
        if f"hc_{residual}" not in CONFIG_MAPPING:
            families = [name.removeprefix("hc_") for name in CONFIG_MAPPING if name.startswith("hc_")]
            raise ValueError(
                f"hyper_connect=true does not know model_type={residual!r} of {args.model_name_or_path}; it takes a "
                f"residual checkpoint of {', '.join(families)}."
            )
        values |= {"model_type": f"hc_{residual}", "stream_reduction": "mean", "architectures": None}
    elif not overrides:
        try:
            return AutoConfig.from_pretrained(args.model_name_or_path)
        except StrictDataclassError as error:
            raise ValueError(
                f"A field of the config.json of {args.model_name_or_path} has a wrong value. "
                f"{' '.join(str(error).split())}"
            ) from error
    return build_config(values, overrides, source=f"the config.json of {args.model_name_or_path}")


def _value(text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def load_checkpoint(
    auto_class: Any, name: str, config: PreTrainedConfig, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads a checkpoint in fp32, whatever it lacks. Returns the model and upstream's report of what does not fit."""
    try:
        return auto_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **options,
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of model_name_or_path={name} cannot be read: {error}.") from error


def make_model(args: ModelArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds the model, or loads it in fp32 and makes sure that the checkpoint has all of it."""
    if args.config is not None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        return AutoModelForCausalLM.from_config(config)
    name = args.model_name_or_path
    options = {"distributed_config": DistributedConfig(tp_plan="auto")} if args.tensor_parallel else {}
    model, report = load_checkpoint(AutoModelForCausalLM, name, config, **options)
    missing = [key for key in sorted(report["missing_keys"]) if not (args.hyper_connect and is_connection(key))]
    wrong = missing + [
        f"{key} {tuple(found)} instead of {tuple(asked)}" for key, found, asked in report["mismatched_keys"]
    ]
    if wrong:
        raise ValueError(
            f"The checkpoint model_name_or_path={name} lacks tensors of {type(model).__name__} or has them in another "
            f"shape: {', '.join(wrong[:4])}{f' and {len(wrong) - 4} more' * (len(wrong) > 4)}. Use a whole checkpoint "
            "of a causal language model"
            + ("." if args.hyper_connect else ", or hyper_connect=true to add hyper-connections to a residual one.")
        )
    return model


def with_lora(model: PreTrainedModel, r: int) -> PeftModel:
    """Puts LoRA on every linear layer, and trains hyper-connections whole.

    They are about as many parameters as the adapters; and those of a converted checkpoint, if they were frozen, would
    stay the residual connections that they start as.
    """
    modules = model.named_modules()
    connections = {name.rpartition(".")[2] for name, module in modules if isinstance(module, StreamModule)}
    if not connections and PartialState().is_main_process:
        logger.warning(
            f"The checkpoint is a residual {model.config.model_type}: lora_r={r} adapts it as it is. To train "
            "hyper-connections, too, give it some first with `modeling-hc convert`."
        )
    return get_peft_model(
        model,
        LoraConfig(
            r=r,
            lora_alpha=2 * r,
            target_modules="all-linear",
            modules_to_save=sorted(connections) or None,
            task_type="CAUSAL_LM",
        ),
    )


def prepare(
    model_args: ModelArguments, data_args: DataArguments, args: SafeTrainingArguments
) -> tuple[SafeTrainer, dict[str, Any]]:
    """Validates all inputs and builds the trainer. Returns it and a description of the data."""
    check_folder(model_args, data_args, args)
    set_seed(args.seed)
    config = model_config(model_args)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{model_args.config or model_args.model_name_or_path} is of model_type={config.model_type}, which is no "
            "causal language model. `modeling-hc train-images` trains a ViT."
        )
    with args.main_process_first(desc="reading the data"):
        train, held_out = load_documents(data_args)
    tokenizer = make_tokenizer(data_args.tokenizer or model_args.model_name_or_path, data_args, config, train)
    model = make_model(model_args, config, tokenizer)
    if model_args.recompute_streams:
        if not hasattr(model, "recompute_streams"):
            raise ValueError(f"recompute_streams is true, but {model.config.model_type} has no streams; leave it out.")
        model.recompute_streams()
    if model_args.lora_r is not None:
        model = with_lora(model, model_args.lora_r)
    with args.main_process_first(desc="tokenizing the data"):
        train, train_size = make_blocks(train, "training", tokenizer, data_args)
        data = {"train": train_size}
        if held_out is not None:
            held_out, data["validation"] = make_blocks(held_out, "held-out", tokenizer, data_args)
    watched = torch.tensor([block["input_ids"][:128] for block in train.take(2)])
    if not isinstance(train, Dataset):
        # Without an end: a resumed Trainer counts the batches to skip from the beginning of the first epoch.
        train = train.shuffle(seed=args.data_seed or args.seed, buffer_size=1000).repeat(None)

    metric = evaluate.load(language_modeling.__file__, keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nll, correct, tokens = joined(prediction.predictions).T
        size = data["validation"]
        return metric.compute(nll=nll, correct=correct, tokens=tokens, tokens_per_byte=size["tokens"] / size["bytes"])

    trainer = SafeTrainer(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=block_sums,
        on_nonfinite=args.on_nonfinite,
    )
    trainer.add_callback(ConnectionHealth(trainer, watched))
    if trainer.accelerator.is_fsdp2 and isinstance(model, HCPreTrainedModelMixin):
        model.shard_connections()
    return trainer, data


def run(read: Callable = parse, prepare: Callable = prepare, finish: Callable = finish) -> int:
    """Trains, evaluates, and leaves everything in the run folder.

    Args:
        read: turns the command line into the arguments of the model, of the data and of training.
        prepare: turns these into a trainer and a description of the data.
        finish: writes what is known after training, see `run_folder.finish`.

    Returns:
        The exit status.
    """
    try:
        model_args, data_args, args = read(sys.argv[1:])
        trainer, data = prepare(model_args, data_args, args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{program()}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program()}: stopped before training; nothing was written.")

    def train_and_record() -> None:
        folder = Path(args.output_dir)
        run = describe_run(model_args, data_args, args) | {"data": data, "parameters": trainer.model.num_parameters()}
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            run["commands"] = [*earlier_commands(folder), run["command"]]
        trainer.add_callback(RecordRun(folder, run))
        train(trainer, lambda: finish(folder, run, trainer))

    return supervise(trainer, train_and_record)


def supervise(trainer: SafeTrainer, train: Callable[[], None]) -> int:
    """Trains, and says how to go on where that has ended early. Returns the exit status."""
    folder = Path(trainer.args.output_dir)
    try:
        if trainer.is_world_process_zero():
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        train()
    except ResumeError as error:
        sys.exit(f"{program()}: {error}")
    except DataError as error:
        with suppress(OSError):  # what the Trainer made, where no step was taken
            folder.rmdir()
        sys.exit(f"{program()}: {error} {how_to_go_on(folder) if folder.exists() else 'Nothing was written.'}")
    except (KeyboardInterrupt, NonFiniteError, SaveError, OSError) as error:
        reason = str(error) or f"stopped the run in output_dir={folder}."
        sys.exit(f"{program()}: {reason} {how_to_go_on(folder)}")
    if trainer.sigterm.stopped:
        if trainer.is_world_process_zero():
            step = trainer.state.global_step
            print(f"{program()}: SIGTERM stopped the run after step {step}. {how_to_go_on(folder)}", file=sys.stderr)
        return STOPPED
    return 0


def how_to_go_on(folder: Path) -> str:
    """Returns what is left of a run that has ended early, and how to resume it."""
    last = last_checkpoint(folder)
    where = f"from {Path(last).name}" if last else "from its beginning, for it has no checkpoint yet"
    return f"Add --resume_from_checkpoint true to the command to go on {where}."


def train(trainer: SafeTrainer, finish: Callable[[], None]) -> None:
    """Trains, and unless that was stopped, saves, and evaluates the weights that were saved.

    In this order: an evaluation may fail, and with bf16_full_eval it rounds the weights.
    """
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if trainer.sigterm.stopped:
        return
    trainer.publish()
    if trainer.is_world_process_zero():
        finish()
    if trainer.eval_dataset is not None and not evaluation_at(trainer, published_step(trainer)):
        trainer.evaluate()
        if trainer.is_world_process_zero():
            finish()


def main(run: Callable[[], int] = run) -> int:
    """Runs the command line in a process of its own. Returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treats a scheduler's SIGTERM like Ctrl-C
    status = run()
    # Not before DDP's reducer is gone with the trainer: if it is what frees the process group, it holds the GIL, for
    # which gloo's threads may wait, for which it waits.
    gc.collect()
    PartialState().destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
