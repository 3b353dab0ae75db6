# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Images for a classifier in training: where they come from, augmentation, mixup, the loss and the metrics.

What is random depends on the seed, the epoch and the number of an image alone, so a resumed run sees what a run that
was not stopped sees, with any number of workers.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from transformers import (
    BaseImageProcessor,
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..losses import joined
from .safe_trainer import DataError


@dataclass
class ImageArguments:
    """What to train on; the names are those of transformers' run_image_classification.py, but for `mixup`."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a folder of one, such as of parquet files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with a folder of images for each class."})
    validation_dir: str | None = field(default=None, metadata={"help": "Held-out images, likewise."})
    train_val_split: float | None = field(
        default=0.15, metadata={"help": "Part of the training images to hold out where no held-out ones are given."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many images only."})
    image_column_name: str = field(default="image", metadata={"help": "Column that holds the image."})
    label_column_name: str = field(default="label", metadata={"help": "Column that holds the class."})
    mixup: float = field(
        default=0.0,
        metadata={"help": "Mix pairs of training images, and their labels, by a share from Beta(mixup, mixup)."},
    )


def load_images(args: ImageArguments, seed: int) -> tuple[Dataset, Dataset, list[str]]:
    """Loads the training and held-out rows.

    Returns:
        Two data sets with the columns `image` and `label`, the number of a class, and the names of the classes.

    Raises:
        ValueError: there is no such data, a column or label is missing, or only held-out images are of some class.
    """
    if (args.dataset_name is None) == (args.train_dir is None):
        raise ValueError(
            f"Give either dataset_name or train_dir; got dataset_name={args.dataset_name} and train_dir="
            f"{args.train_dir}."
        )
    if args.validation_dir is not None and args.train_dir is None:
        raise ValueError(f"validation_dir={args.validation_dir} needs train_dir.")
    if not 0 <= args.mixup <= 1e3:
        raise ValueError(f"mixup={args.mixup} must be from 0, which turns it off, to 1000; the paper's is 0.2.")
    source = f"dataset_name={args.dataset_name}" if args.train_dir is None else f"train_dir={args.train_dir}"
    rows = _load(args, source)
    for column, name in (("image", args.image_column_name), ("label", args.label_column_name)):
        if name not in rows["train"].column_names:
            raise ValueError(
                f"{source} has no column {column}_column_name={name!r}; its columns are {rows['train'].column_names}."
            )
        if name != column:
            rows = rows.remove_columns([column] if column in rows["train"].column_names else [])
            rows = rows.rename_column(name, column)
    rows = rows.select_columns(["image", "label"])
    label = rows["train"].features["label"]
    trained = _labels(rows["train"], f"{source} (train)")
    names = label.names if isinstance(label, ClassLabel) else sorted(trained)
    if len(names) < 2:
        raise ValueError(f"{source} has images of {len(names)} class: {names}. A classifier needs two or more.")
    if "validation" not in rows:
        share = args.train_val_split or 0.0
        if not 0 < share < 1 or len(rows["train"]) < 2:
            raise ValueError(
                f"{source} has no held-out images. Give validation_dir, or a train_val_split between 0 and 1 of "
                "several images."
            )
        split = rows["train"].train_test_split(share, seed=seed)
        rows = DatasetDict(train=split["train"], validation=split["test"])
    elif unknown := _labels(rows["validation"], f"{source} (validation)") - trained:
        raise ValueError(
            f"{source} has held-out images of the class {min(unknown)!r}, and no training image of it. Its training "
            f"images are of {sorted(trained)[:20]}: add images of that class, or take it away."
        )
    rows = rows.cast_column("image", datasets.Image())
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    found = {split: _numbered(rows[split], names, limits[split]) for split in limits}
    return found["train"], found["validation"], names


def _load(args: ImageArguments, source: str) -> DatasetDict:
    for name in ("train_dir", "validation_dir"):
        folder = getattr(args, name)
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"{name}={folder} is no folder. Give one that has a folder of images for each class.")
    try:
        if args.train_dir is None:
            found = load_dataset(args.dataset_name, args.dataset_config_name)
        else:
            folders = {"train": args.train_dir, "validation": args.validation_dir}
            files = {split: str(Path(folder) / "**") for split, folder in folders.items() if folder is not None}
            found = load_dataset("imagefolder", data_files=files, drop_labels=False)
    except Exception as error:  # of the network, the folder, or a file's format
        hint = " Each folder must have images, in a folder for each class."
        if args.dataset_name is not None:
            hint = "" if Path(args.dataset_name).exists() else " There is no such folder, either."
        raise ValueError(f"Cannot read {source}: {' '.join(str(error).split())[:500]}{hint}") from error
    if "train" not in found:
        raise ValueError(f"{source} has no split train; its splits are {list(found)}.")
    return DatasetDict({split: found[split] for split in ("train", "validation") if split in found})


def _labels(rows: Dataset, source: str) -> set[str]:
    """Returns the names of the classes that images are of."""
    label, values = rows.features["label"], rows.unique("label")
    # -1: of a split on the Hub whose labels are secret
    if None in values or (isinstance(label, ClassLabel) and -1 in values):
        raise ValueError(f"{source} has images without a label. Leave these rows out, or give other images.")
    return {_name(label, value) for value in values}


def _name(label: Any, value: Any) -> str:
    return label.int2str(value) if isinstance(label, ClassLabel) else str(value)


def _numbered(rows: Dataset, names: list[str], limit: int | None) -> Dataset:
    """Returns rows whose label is its number in `names`, at most `limit` of them."""
    if limit is not None:
        if limit < 1:
            raise ValueError(f"max_train_samples and max_eval_samples must be 1 or more, and one is {limit}.")
        rows = rows.shuffle(seed=0).select(range(min(limit, len(rows))))
    label = rows.features["label"]
    if isinstance(label, ClassLabel) and label.names == names:
        return rows
    numbers = {name: i for i, name in enumerate(names)}
    return rows.remove_columns("label").add_column("label", [numbers[_name(label, v)] for v in rows["label"]])


def read_row(rows: Dataset, index: int) -> dict[str, Any]:
    """Returns a row with its image.

    Raises:
        DataError: the image is damaged, or none.
    """
    try:
        return rows[index]
    except Exception as error:  # PIL has many kinds
        stored = rows.cast_column("image", datasets.Image(decode=False))[index]["image"]
        raise DataError(
            f"The image {stored['path'] or f'of row {index}'} cannot be read: {' '.join(str(error).split())}. Replace "
            "it, or take it away."
        ) from error


class Images(torch.utils.data.Dataset):
    """Rows as a ViT reads them.

    Args:
        rows: with the columns `image` and `label`.
        processor: makes pixel values of an image; held-out images pass through it as in a pipeline.
        seed: of a random crop and flip; None for held-out images, which get neither.
    """

    def __init__(self, rows: Dataset, processor: BaseImageProcessor, seed: int | None = None) -> None:
        self.rows = rows
        self.processor = processor
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `pixel_values` `[3, H, W]`, `labels`, and for training `seed`, from which `mixup` draws."""
        row = read_row(self.rows, int(index))
        image, size = row["image"].convert("RGB"), self.processor.size
        if self.seed is None:
            pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
            return {"pixel_values": pixels, "labels": row["label"]}
        random = np.random.default_rng([self.seed, self.epoch, int(index)])
        image = random_crop(image, size["height"], size["width"], random)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = self.processor(image, do_resize=False, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": row["label"], "seed": int(random.integers(2**31))}


class TellEpoch(TrainerCallback):
    """Tells the images which epoch it is, before the workers start."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batches = len(kwargs["train_dataloader"])
        self.images.epoch = state.global_step // math.ceil(batches / args.gradient_accumulation_steps)


def random_crop(image: Image.Image, height: int, width: int, random: np.random.Generator) -> Image.Image:
    """Returns a random part of an image in a new size: 8 to 100 % of its area, of an aspect ratio from 3/4 to 4/3."""
    for _ in range(10):
        area = image.width * image.height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= image.width and 0 < h <= image.height:
            break
    else:  # the image is too narrow for it
        w, h = min(image.size), min(image.size)
    left, top = random.integers(image.width - w + 1), random.integers(image.height - h + 1)
    box = (int(left), int(top), int(left) + w, int(top) + h)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


class Collator:
    """Makes a batch of rows, and mixes it where it is for training.

    Source: mixup, arXiv 1710.09412.
    """

    def __init__(self, num_classes: int, mixup: float) -> None:
        self.num_classes = num_classes
        self.mixup = mixup

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns `pixel_values` `[B, 3, H, W]` and `labels`, `[B]`, or as probabilities `[B, classes]` if mixed."""
        pixels = torch.stack([row["pixel_values"] for row in rows])
        labels = torch.tensor([row["labels"] for row in rows])
        if self.mixup > 0 and "seed" in rows[0]:
            random = np.random.default_rng(rows[0]["seed"])
            share, order = random.beta(self.mixup, self.mixup), torch.from_numpy(random.permutation(len(rows)))
            hot = one_hot(labels, self.num_classes).float()
            pixels, labels = (share * values + (1 - share) * values[order] for values in (pixels, hot))
        return {"pixel_values": pixels, "labels": labels}


def soft_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """The Trainer's `compute_loss_func`: cross-entropy, also against probabilities.

    transformers' own loss takes labels of floating point for those of a multi-label task, and says nothing.

    Args:
        outputs: with `logits` `[B, classes]`.
        labels: `[B]`, or probabilities `[B, classes]`.
        num_items_in_batch: how many numbers the labels of all batches of a step have, to divide by.
    """
    loss = cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    if num_items_in_batch is None:
        return loss / len(labels)
    return loss / num_items_in_batch * (labels.shape[1] if labels.dim() == 2 else 1)


def five_best(logits: Tensor, labels: Tensor) -> Tensor:
    """Reduces logits `[B, classes]`, before they are gathered, to the five likeliest classes `[B, 5]`, best first."""
    return logits.topk(min(5, logits.shape[-1])).indices


def accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Returns accuracy and top-5 accuracy; of five classes or fewer, the latter is 1."""
    hits = joined(prediction.predictions) == joined(prediction.label_ids)[:, None]
    return {"accuracy": float(hits[:, 0].mean()), "top5_accuracy": float(hits.any(1).mean())}
