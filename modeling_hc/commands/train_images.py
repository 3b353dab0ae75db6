# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Trains a ViT to classify images: from a recipe, or on from any checkpoint, with the stock Trainer.

    modeling-hc train-images paper-vit --train_dir imagenet/train --validation_dir imagenet/val
    accelerate launch -m modeling_hc.commands.train_images RECIPE [--flag value ...]

Fields have the names of transformers' run_image_classification.py. Every field below and of
`transformers.TrainingArguments` can stand in the YAML or be a flag; flags win. The run folder gets the model, its
image processor and card at the top, checkpoint-*, run.json, log_history.json and curves.png. The exit status, and
how to resume a run, are those of `modeling-hc train`.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    ViTConfig,
    set_seed,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..health import ConnectionHealth
from ..loading_hc import is_connection
from ..model_card_hc import add_training
from ..modeling_hc_common import HCPreTrainedModelMixin
from ..records import write_json
from ..training import run_folder
from ..training.arguments import SafeTrainingArguments, StartArguments, parse
from ..training.images import (
    Collator,
    ImageArguments,
    Images,
    TellEpoch,
    accuracies,
    five_best,
    load_images,
    soft_cross_entropy,
)
from ..training.safe_trainer import SafeTrainer
from . import train


@dataclass
class ImageModelArguments(StartArguments):
    """What to train, and its image processor and head."""

    image_processor_name: str | None = field(
        default=None, metadata={"help": "Name or folder of an image processor other than the checkpoint's."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start a head for another number of classes anew."}
    )

    # What `train.model_config` also knows, and images have no use for.
    lora_r: ClassVar[None] = None
    tensor_parallel: ClassVar[bool] = False


def make_processor(args: ImageModelArguments, config: PreTrainedConfig) -> BaseImageProcessor:
    """Returns the checkpoint's image processor, or ViT's, for the model's size of images."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    options = {"size": {"height": height, "width": width}}
    name = args.image_processor_name or args.model_name_or_path
    if name is None:
        return ViTImageProcessorPil(**options)
    try:
        return AutoImageProcessor.from_pretrained(name, backend="pil", **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} has no image processor: {' '.join(str(error).split())} Name one with image_processor_name."
        ) from error


def make_model(args: ImageModelArguments, config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the model, or loads it in fp32; a head for other classes starts anew only where that is asked for."""
    if args.config is not None:
        return AutoModelForImageClassification.from_config(config)
    name = args.model_name_or_path
    model, report = train.load_checkpoint(AutoModelForImageClassification, name, config)
    head = "classifier."
    missing = {k for k in report["missing_keys"] if not k.startswith(head)}
    wrong = {k for k in missing if not (args.hyper_connect and is_connection(k))}
    wrong |= {
        key for key, *_ in report["mismatched_keys"] if not (args.ignore_mismatched_sizes and key.startswith(head))
    }
    if wrong:
        raise ValueError(
            f"model_name_or_path={name} lacks {min(wrong)} of {type(model).__name__}, or has it in another shape. "
            "Give a whole checkpoint; ignore_mismatched_sizes=true starts a head for another number of classes anew, "
            "and hyper_connect=true adds hyper-connections to a residual one."
        )
    return model


def prepare(
    model_args: ImageModelArguments, data_args: ImageArguments, args: SafeTrainingArguments
) -> tuple[SafeTrainer, dict[str, Any]]:
    """Validates all inputs and builds the trainer. Returns it and a description of the data."""
    run_folder.check_folder(model_args, data_args, args)
    set_seed(args.seed)
    config = train.model_config(model_args)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"{model_args.config or model_args.model_name_or_path} is of model_type={config.model_type}, which "
            "classifies no images. Give a recipe or checkpoint of a ViT, such as config=vit-base-shc2."
        )
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError(f"num_channels={config.num_channels} must be 3: images are read as RGB.")
    if model_args.config is not None and isinstance(config, ViTConfig):
        sizes, patches = ((n, n) if isinstance(n, int) else n for n in (config.image_size, config.patch_size))
        if any(size % patch for size, patch in zip(sizes, patches, strict=True)):  # upstream leaves the edges out
            raise ValueError(f"image_size={config.image_size} must be a multiple of patch_size={config.patch_size}.")
    with args.main_process_first(desc="reading the data"):
        train_rows, held_out, names = load_images(data_args, args.seed)
    config.label2id = {name: i for i, name in enumerate(names)}
    config.id2label = dict(enumerate(names))
    processor = make_processor(model_args, config)
    model = make_model(model_args, config)
    if model_args.recompute_streams:
        if not hasattr(model, "recompute_streams"):
            raise ValueError(f"recompute_streams is true, but {config.model_type} has no streams; leave it out.")
        model.recompute_streams()
    images = Images(train_rows, processor, args.data_seed or args.seed)
    args.remove_unused_columns = False  # the model reads what `Images` makes of them
    trainer = SafeTrainer(
        model=model,
        args=args,
        data_collator=Collator(len(names), data_args.mixup),
        train_dataset=images,
        eval_dataset=Images(held_out, processor),
        processing_class=processor,
        compute_loss_func=soft_cross_entropy,
        compute_metrics=accuracies,
        preprocess_logits_for_metrics=five_best,
        on_nonfinite=args.on_nonfinite,
        callbacks=[TellEpoch(images)],
    )
    watched = [trainer.eval_dataset[i]["pixel_values"] for i in range(min(4, len(held_out)))]
    trainer.add_callback(ConnectionHealth(trainer, torch.stack(watched)))
    if trainer.accelerator.is_fsdp2 and isinstance(model, HCPreTrainedModelMixin):
        model.shard_connections()
    return trainer, {"train": len(train_rows), "validation": len(held_out), "classes": len(names)}


def finish(folder: Path, run: dict[str, Any], trainer: Trainer) -> None:
    """Writes what is known after training: run.json, log_history.json, curves.png and the card's training section."""
    history = trainer.state.log_history
    step, steps = run_folder.published_step(trainer), trainer.state.global_step
    results = run_folder.evaluation_at(trainer, step)
    seen = steps * trainer.get_total_train_batch_size(trainer.args)
    run |= {"steps": steps, "images_seen": seen, "published_step": step, "results": results}
    write_json(folder / "run.json", run)
    write_json(folder / "log_history.json", history)
    plot_curves(history, folder / "curves.png")
    configuration, data = run["configuration"], run["data"]
    facts = {
        "Started from": configuration["model_name_or_path"],
        "Data": f"{configuration['dataset_name'] or configuration['train_dir']}: {data['train']:,} images of "
        f"{data['classes']:,} classes, {data['validation']:,} held out",
        "Images seen": f"{seen:,}",
        "Steps": f"{steps:,}" + (f"; these are the weights after step {step:,}" if step != steps else ""),
        "Mixup": configuration["mixup"] or None,
        "Held-out loss": results.get("eval_loss"),
        "Held-out accuracy": results.get("eval_accuracy"),
        "Held-out top-5 accuracy": results.get("eval_top5_accuracy"),
    }
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    facts = {name: value for name, value in facts.items() if value is not None} | {"Versions": versions}
    dataset = configuration["dataset_name"]
    on_hub = [dataset] if dataset and not Path(dataset).exists() else None
    add_training(folder, run["command"], facts, on_hub)


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draws training and held-out loss, and the held-out accuracies, over the epochs."""
    pyplot = run_folder.pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = [("loss", "training", 0), ("eval_loss", "held out", 0)]
    lines += [("eval_accuracy", "top 1", 1), ("eval_top5_accuracy", "top 5", 1)]
    for key, label, panel in lines:
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        if points:
            panels[panel].plot(*zip(*points, strict=True), "o-", label=label, markersize=3)
            panels[panel].legend()
    for axes, label in zip(panels, ("loss (nats)", "held-out accuracy"), strict=True):
        axes.set(xlabel="epochs", ylabel=label)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


read = partial(
    parse,
    dataclass_types=(ImageModelArguments, ImageArguments, SafeTrainingArguments),
    recipes="images",
    description="Trains a ViT to classify images: from a recipe, or on from a checkpoint.",
)
run = partial(train.run, read, prepare, finish)
main = partial(train.main, run)


if __name__ == "__main__":
    sys.exit(main())
