# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Trains a class-conditional DiT on images, in pixels: from scratch, or on from a checkpoint, with the stock Trainer.

    modeling-hc train-diffusion fashion-mnist --dataset_name data/fashion-mnist
    accelerate launch -m modeling_hc.commands.train_diffusion RECIPE [--flag value ...]

Fields of the data have the names of `modeling-hc train-images`. Every field below and of
`transformers.TrainingArguments` can stand in the YAML or be a flag; flags win. The run folder gets a `DiTPipeline` of
the averaged weights at the top, samples.png, checkpoint-*, run.json and log_history.json. The exit status, and how to
resume a run, are those of `modeling-hc train`.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

from diffusers import DDPMScheduler
from huggingface_hub.errors import StrictDataclassError
from transformers import Trainer, default_data_collator, set_seed

from ..diffusion import HCDiTTransformer2DModel
from ..loading_hc import unreadable
from ..recipes import suggestion
from ..records import versions, write_json
from ..training import run_folder
from ..training.arguments import SafeTrainingArguments, parse
from ..training.diffusion import Average, Denoiser, DiffusionTrainer, NoisyImages, initialize, losses_by_timestep
from ..training.images import ImageArguments, load_images
from . import train

FIELDS = [name for name in signature(HCDiTTransformer2DModel.__init__).parameters if name != "self"]


@dataclass
class DiffusionArguments:
    """What to train, and how it diffuses; the names are those of diffusers."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "DiT to train on from, a residual one with new hyper-connections; without it, one starts anew."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Fields of the model, such as num_layers=6,num_streams=2,connection=static; connection=null is "
            "residual. class_dropout_prob is the part of the labels to drop, for guidance."
        },
    )
    num_train_timesteps: int = field(default=1000, metadata={"help": "Steps from an image to noise."})
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = field(
        default="linear",
        metadata={"help": "How the noise grows: as in DDPM and DiT, or later, which suits small images and models."},
    )
    ema_decay: float = field(
        default=0.9999, metadata={"help": "Decay of the average of the weights, which is what is evaluated and saved."}
    )
    guidance_scale: float = field(default=4.0, metadata={"help": "Of the samples that are drawn with guidance."})
    num_inference_steps: int = field(default=50, metadata={"help": "Steps of DDIM to draw the samples with."})


@dataclass
class DiffusionImageArguments(ImageArguments):
    """`ImageArguments` without what only a classifier has."""

    mixup: ClassVar[float] = 0.0


def make_model(args: DiffusionArguments, num_classes: int) -> HCDiTTransformer2DModel:
    """Builds the model, or loads it in fp32."""
    fields = train.read_overrides(args.config_overrides)
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f"{name!r} in config_overrides is not a field of a DiT{suggestion(name, FIELDS)}")
    fields.setdefault("num_embeds_ada_norm", num_classes)
    try:
        if args.model_name_or_path is None:
            model = HCDiTTransformer2DModel(**fields)
            initialize(model)
        else:
            model = HCDiTTransformer2DModel.from_pretrained(args.model_name_or_path, **fields)
    except OSError as error:
        raise ValueError(
            f"model_name_or_path={unreadable(args.model_name_or_path, error)} It is a folder of a DiT, such as the "
            "folder `transformer` of a pipeline, or a name on the Hub."
        ) from error
    except (TypeError, NotImplementedError, StrictDataclassError, ZeroDivisionError) as error:
        raise ValueError(
            f"No model can be built with config_overrides={args.config_overrides}: {' '.join(str(error).split())}"
        ) from error
    config = model.config
    if config.num_embeds_ada_norm != num_classes:
        raise ValueError(
            f"num_embeds_ada_norm={config.num_embeds_ada_norm} must be {num_classes}, one for each class."
        )
    if config.out_channels != config.in_channels or config.in_channels not in (1, 3):
        raise ValueError(
            f"in_channels={config.in_channels} and out_channels={config.out_channels} must both be 1, for grey "
            "images, or 3: the model predicts the noise of each pixel, and no variances."
        )
    if config.sample_size % config.patch_size:
        raise ValueError(f"sample_size={config.sample_size} must be a multiple of patch_size={config.patch_size}.")
    return model


def prepare(
    model_args: DiffusionArguments, data_args: DiffusionImageArguments, args: SafeTrainingArguments
) -> tuple[DiffusionTrainer, dict[str, Any]]:
    """Validates all inputs and builds the trainer. Returns it and a description of the data."""
    run_folder.check_folder(model_args, data_args, args)
    for name, low, high in (("ema_decay", 0, 1), ("num_train_timesteps", 1, 10**6), ("num_inference_steps", 1, 10**6)):
        if not low <= getattr(model_args, name) <= high:
            raise ValueError(f"{name}={getattr(model_args, name)} must be from {low} to {high}.")
    if model_args.num_inference_steps > model_args.num_train_timesteps:
        raise ValueError(
            f"num_inference_steps={model_args.num_inference_steps} must be at most num_train_timesteps="
            f"{model_args.num_train_timesteps}."
        )
    set_seed(args.seed)
    with args.main_process_first(desc="reading the data"):
        train_rows, held_out, names = load_images(data_args, args.seed)
    model = make_model(model_args, len(names))
    steps = model_args.num_train_timesteps
    scheduler = DDPMScheduler(num_train_timesteps=steps, beta_schedule=model_args.beta_schedule)
    denoiser = Denoiser(model, scheduler, model_args.ema_decay)
    shape = model.config.sample_size, model.config.in_channels
    args.remove_unused_columns = False
    trainer = DiffusionTrainer(
        model=denoiser,
        args=args,
        data_collator=default_data_collator,
        train_dataset=NoisyImages(train_rows, *shape),
        eval_dataset=NoisyImages(held_out, *shape, num_timesteps=steps),
        compute_metrics=partial(losses_by_timestep, num_timesteps=steps),
        on_nonfinite=args.on_nonfinite,
        callbacks=[Average(denoiser)],
        names=names,
        guidance_scale=model_args.guidance_scale,
        num_inference_steps=model_args.num_inference_steps,
    )
    return trainer, {"train": len(train_rows), "validation": len(held_out), "classes": len(names)}


def finish(folder: Path, run: dict[str, Any], trainer: Trainer) -> None:
    """Writes what is known after training: run.json and log_history.json."""
    step, steps = run_folder.published_step(trainer), trainer.state.global_step
    seen = steps * trainer.get_total_train_batch_size(trainer.args)
    results = run_folder.evaluation_at(trainer, step)
    run["versions"] |= versions("diffusers")
    run |= {"steps": steps, "images_seen": seen, "published_step": step, "results": results}
    write_json(folder / "run.json", run)
    write_json(folder / "log_history.json", trainer.state.log_history)


read = partial(
    parse,
    dataclass_types=(DiffusionArguments, DiffusionImageArguments, SafeTrainingArguments),
    recipes="diffusion",
    description="Trains a class-conditional DiT on images: from scratch, or on from a checkpoint.",
)
run = partial(train.run, read, prepare, finish)
main = partial(train.main, run)


if __name__ == "__main__":
    sys.exit(main())
