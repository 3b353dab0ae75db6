# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A diffusion transformer in training: images and their noise, the loss, averaged weights, samples."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from diffusers import DDIMScheduler, DDPMScheduler, DiTPipeline
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..diffusion import HCDiTTransformer2DModel, Pixels
from ..losses import joined
from .images import read_row
from .safe_trainer import SafeTrainer

BUCKETS = 5
"""The number of equal ranges of timesteps for which the held-out loss is reported."""
SAMPLES = 8
"""The number of samples that are drawn of each class, for the first `CLASSES` classes."""
CLASSES = 10


class NoisyImages(torch.utils.data.Dataset):
    """Rows as a DiT of pixels reads them, from -1 to 1.

    Args:
        rows: with the columns `image` and `label`.
        size: of the square that is cut from the middle of an image.
        channels: 1 for grey images, 3 for colours.
        num_timesteps: gives each image a timestep and noise, which depend on its number alone: two models, or two
            evaluations, are compared on the same. None leaves both to the model, which draws them for each batch.
    """

    def __init__(self, rows: Dataset, size: int, channels: int, num_timesteps: int | None = None) -> None:
        self.rows = rows
        self.size = size
        self.mode = "L" if channels == 1 else "RGB"
        self.num_timesteps = num_timesteps

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `pixel_values` `[C, H, W]`, `labels`, and for held-out images `timesteps` and `noise`."""
        row = read_row(self.rows, int(index))
        image = ImageOps.fit(row["image"].convert(self.mode), (self.size, self.size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=np.float32).reshape(self.size, self.size, -1).transpose(2, 0, 1) / 127.5 - 1
        example = {"pixel_values": torch.from_numpy(pixels), "labels": row["label"]}
        if self.num_timesteps is not None:
            random = np.random.default_rng(int(index))
            part = (int(index) % BUCKETS + random.random()) / BUCKETS
            example["timesteps"] = int(part * self.num_timesteps)
            example["noise"] = torch.from_numpy(random.standard_normal(pixels.shape, dtype=np.float32))
        return example


@torch.no_grad()
def initialize(model: HCDiTTransformer2DModel) -> None:
    """Gives a DiT the initial weights of the DiT paper: the gates and the output are 0. diffusers has PyTorch's.

    Source: Section 3.2 ("adaLN-Zero block") of arXiv 2212.09748.
    """
    zero = [model.proj_out_1, model.proj_out_2, *(block.norm1.linear for block in model.transformer_blocks)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if module in zero:
                module.weight.zero_()
            elif "timestep_embedder" in name:
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


class Denoiser(nn.Module):
    """A DiT and its loss: how far it is from the noise that was added to an image.

    In evaluation it is the averaged weights that predict.

    Args:
        transformer: `[B, C, H, W]` to as many channels.
        scheduler: adds the noise.
        ema_decay: of the average; in the first steps it is less, (1 + steps) / (10 + steps).

    Source: Eq. 14 of DDPM, arXiv 2006.11239.
    """

    main_input_name = "pixel_values"

    def __init__(self, transformer: HCDiTTransformer2DModel, scheduler: DDPMScheduler, ema_decay: float) -> None:
        super().__init__()
        self.transformer = transformer
        self.scheduler = scheduler

        def average(averaged: Tensor, now: Tensor, steps: Tensor | int) -> Tensor:
            return averaged.lerp(now, 1 - min(ema_decay, (1 + int(steps)) / (10 + int(steps))))

        self.averaged = AveragedModel(transformer, avg_fn=average, use_buffers=False).requires_grad_(False)

    def num_parameters(self, **kwargs: Any) -> int:
        return self.transformer.num_parameters(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The Trainer's call, where it is asked to keep fewer activations."""
        self.transformer.enable_gradient_checkpointing()

    gradient_checkpointing_enable = activation_checkpointing_enable  # the name in older versions

    def forward(
        self, pixel_values: Tensor, labels: Tensor, timesteps: Tensor | None = None, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predicts the noise in images.

        Args:
            pixel_values: `[B, C, H, W]`.
            labels: `[B]`.
            timesteps: `[B]`; drawn where there are none.
            noise: `[B, C, H, W]`, likewise.

        Returns:
            `loss`, and `losses` `[B, 2]`: an image's loss and timestep.
        """
        if timesteps is None or noise is None:
            noise = torch.randn_like(pixel_values)
            steps = self.scheduler.config.num_train_timesteps
            timesteps = torch.randint(steps, labels.shape, device=labels.device)
        noisy = self.scheduler.add_noise(pixel_values, noise, timesteps)
        model = self.transformer if self.training else self.averaged
        predicted = model(noisy, timestep=timesteps, class_labels=labels).sample
        losses = (predicted.float() - noise).square().mean((1, 2, 3))
        return {"loss": losses.mean(), "losses": torch.stack([losses.detach(), timesteps.float()], dim=1)}


class Average(TrainerCallback):
    """Averages the weights after each step."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.denoiser.averaged.update_parameters(self.denoiser.transformer)


def losses_by_timestep(prediction: EvalPrediction, num_timesteps: int) -> dict[str, float]:
    """Returns the mean loss in each range of timesteps, as `loss_t0_199`, where an image is in it."""
    losses, timesteps = joined(prediction.predictions).T
    found = {}
    for i in range(BUCKETS):
        low, high = i * num_timesteps // BUCKETS, (i + 1) * num_timesteps // BUCKETS
        inside = (low <= timesteps) & (timesteps < high)
        if inside.any():
            found[f"loss_t{low}_{high - 1}"] = float(losses[inside].mean())
    return found


class DiffusionTrainer(SafeTrainer):
    """A safe Trainer of a `Denoiser`, which leaves a `DiTPipeline` of the averaged weights, and samples of it.

    Args:
        names: of the classes.
        guidance_scale, num_inference_steps: of the samples, see `DiTPipeline`.
        *args, **kwargs: see `SafeTrainer`.
    """

    def __init__(
        self, *args: Any, names: list[str], guidance_scale: float, num_inference_steps: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.names = names
        self.guidance_scale = guidance_scale
        self.num_inference_steps = num_inference_steps

    def pipeline(self) -> DiTPipeline:
        """Returns the averaged weights in a pipeline that draws with DDIM."""
        denoiser = self.accelerator.unwrap_model(self.model)
        scheduler = DDIMScheduler.from_config(denoiser.scheduler.config)
        labels = dict(enumerate(self.names))
        transformer, vae = denoiser.averaged.module.eval(), Pixels().to(self.args.device)
        pipeline = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler, id2label=labels)
        pipeline.register_to_config(id2label=labels)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the pipeline; the Trainer's own call, for a checkpoint, saves what it resumes from."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.pipeline().save_pretrained(output_dir)

    def publish(self) -> None:
        """Saves the pipeline at the top of the run folder, with samples.png."""
        super().publish()
        if self.is_world_process_zero():
            scales = [1.0, self.guidance_scale][: 2 if self.model.transformer.config.class_dropout_prob else 1]
            path = Path(self.args.output_dir) / "samples.png"
            draw(self.pipeline(), len(self.names), scales, self.num_inference_steps).save(path)


def draw(pipeline: DiTPipeline, num_classes: int, scales: list[float], num_inference_steps: int) -> Image.Image:
    """Draws a panel of samples for each guidance scale, from the same noise; a row has those of one class."""
    labels = [label for label in range(min(num_classes, CLASSES)) for _ in range(SAMPLES)]
    panels = []
    for scale in scales:
        generator = torch.Generator().manual_seed(0)
        images = pipeline(labels, scale, generator, num_inference_steps, output_type="np").images
        _, height, width, channels = images.shape
        grid = images.reshape(-1, SAMPLES, height, width, channels).swapaxes(1, 2)
        panels += [
            grid.reshape(-1, SAMPLES * width, channels),
            np.ones((grid.shape[0] * height, width // 2, channels)),
        ]
    pixels = (np.concatenate(panels[:-1], axis=1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
