# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What `modeling-hc experiment` runs: the YAML file of an experiment, and the tokens or images that all runs read."""

import json
import lzma
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, TrainingArguments

from ..analysis.recording import patch_grid
from ..recipes import build_config, find_recipe, load_recipe, suggestion
from ..records import write_json

# Fields of TrainingArguments that follow from an experiment's own, or that its records and resuming rest on.
SET_BY_EXPERIMENT = {
    "output_dir",
    "run_name",
    "seed",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "logging_nan_inf_filter",
}


@strict
@dataclass(kw_only=True)
class Data:
    """Text, and how it is tokenized; or images. Paths are relative to the folder given as --data, patterns allowed.

    Where the model reads images, the files are parquet with the columns `image`, of the model's size, and `label`, the
    number of the class. An image is a block, and its patches are the tokens.
    """

    name: str  # of the folder of tokens, which experiments share
    train: str
    validation: dict[str, str]  # by name; the first is the one that losses are compared on
    documents: int | None = None  # text: how many of the training documents are read, after a shuffle
    tokenizer: str | None = None  # a tokenizer.json; else a byte-level BPE of the model's vocab_size is trained


@strict
@dataclass(kw_only=True)
class Variant:
    """How the model of a run differs from the experiment's: num_streams makes it hyper-connected."""

    model: dict[str, Any] = field(default_factory=dict)  # fields of the configuration
    training: dict[str, Any] = field(default_factory=dict)  # fields of TrainingArguments
    freeze: str | None = None  # parameters whose name matches are not trained
    undecayed: str | None = None  # parameters whose name matches have no weight decay
    home_stream: bool = True  # false: a block of a joint variant first reads all streams alike


@strict
@dataclass(kw_only=True)
class Experiment:
    """A grid: every variant with every seed, on equal data and, but for what a variant changes, an equal schedule."""

    name: str
    data: Data
    model: str | dict[str, Any]  # a recipe, or its content
    variants: dict[str, Variant]  # what the others are compared with comes first
    seeds: list[int]
    tokens: int  # trained on, by each run
    batch_size: int  # blocks a step, of all processes
    block_size: int
    training: dict[str, Any]
    evaluations: int = 16  # during training, evenly spread, and one at its end
    eval_blocks: int = 128  # of the first validation text, at each of them
    final_blocks: int = 512  # of every validation text, after training
    start: str | None = None  # EXPERIMENT/VARIANT: begin with the model of its run with the same seed

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch_size * self.block_size)

    @property
    def of_images(self) -> bool:
        return hasattr(self.config(next(iter(self.variants))), "image_size")

    def blocks(self, tokens: Any, count: int | None = None) -> "Blocks":
        """Returns tokens, or images and their classes, in blocks: so many, evenly spread, or all."""
        return Images(tokens[0], tokens[1], count) if self.of_images else Blocks(tokens, self.block_size, count)

    def config(self, variant: str) -> PreTrainedConfig:
        """Returns the configuration of a variant's model, with every key checked."""
        changes = dict(self.variants[variant].model)
        source = f"variant {variant} of {self.name}"
        values = load_recipe(self.model).to_dict() if isinstance(self.model, str) else dict(self.model)
        if "num_streams" in changes:
            values["model_type"] = f"hc_{values['model_type'].removeprefix('hc_')}"
        return build_config(values, changes, source, known_keys_only=isinstance(self.model, dict))


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment, and builds every configuration in it.

    Raises:
        ValueError: the file cannot be read, or a field is missing, unknown or wrong.
    """
    try:
        path = find_recipe("experiments", path)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Cannot read the experiment {path}: {' '.join(str(error).split())}.") from error
    values = {"name": path.stem} | _dict(values, str(path))
    if "data" in values:
        values["data"] = _build(Data, values["data"], f"data of {path}")
    if "variants" in values:
        values["variants"] = {
            name: _build(Variant, {} if variant is None else variant, f"variant {name} of {path}")
            for name, variant in _dict(values["variants"], f"variants of {path}").items()
        }
    experiment = _build(Experiment, values, str(path))
    _check_values(experiment, path)
    for name, variant in experiment.variants.items():
        config = experiment.config(name)
        positions = getattr(config, "max_position_embeddings", experiment.block_size)
        if experiment.block_size > positions:
            raise ValueError(f"block_size={experiment.block_size} of {path} is more than its model's {positions}.")
        if experiment.of_images:
            patches = math.prod(patch_grid(config))
            if experiment.block_size != patches:
                raise ValueError(
                    f"block_size={experiment.block_size} of {path} must be its model's {patches} patches."
                )
        _check_training(experiment.training | variant.training, path)
    return experiment


def _check_values(experiment: Experiment, path: Path) -> None:
    smallest = {"tokens": 1, "batch_size": 1, "block_size": 2, "evaluations": 1, "eval_blocks": 1, "final_blocks": 1}
    for name, least in smallest.items():
        if getattr(experiment, name) < least:
            raise ValueError(f"{name}={getattr(experiment, name)} of {path} has to be {least} or more.")
    if experiment.steps < experiment.evaluations:
        raise ValueError(
            f"tokens={experiment.tokens} of {path} are {experiment.steps} steps of batch_size * block_size, fewer "
            f"than its {experiment.evaluations} evaluations."
        )
    if experiment.data.documents is not None and experiment.data.documents < 1:
        raise ValueError(f"documents={experiment.data.documents} of {path} has to be 1 or more.")
    if "train" in experiment.data.validation or not experiment.data.validation:
        raise ValueError(f"validation of {path} needs texts, and none may have the name 'train'.")
    if not experiment.variants or not experiment.seeds:
        raise ValueError(f"{path} needs a variant and a seed.")
    check_seeds(experiment.seeds)
    for name in ("documents", "tokenizer"):
        if experiment.of_images and getattr(experiment.data, name) is not None:
            raise ValueError(f"{name} of {path} is for text, and the model reads images: leave it out.")
    for name, variant in experiment.variants.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{name!r} of {path} cannot name a variant: use letters, digits, '-', '_' and '.'.")
        for field_name in ("freeze", "undecayed"):
            try:
                re.compile(getattr(variant, field_name) or "")
            except re.error as error:
                raise ValueError(f"{field_name} of variant {name} of {path} is no pattern: {error}.") from error


def check_seeds(seeds: list[int]) -> None:
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"{seed} cannot be a seed: take numbers from 0 to 2**32 - 1.")


def _check_training(values: dict[str, Any], path: Path) -> None:
    known = {f.name: f for f in fields(TrainingArguments)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{key!r} of {path} is not a field of TrainingArguments{suggestion(key, list(known))}")
        if key in SET_BY_EXPERIMENT:
            raise ValueError(f"{key!r} under training of {path} is what the experiment's own fields decide.")
        if isinstance(known[key].default, float) and not isinstance(value, (int, float)):
            raise ValueError(f"{key}={value!r} of {path} is not a number (YAML reads 1e-3 as text, and 1.0e-3 not).")


def _dict(values: Any, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{source} has to hold names and values, and is {values!r}.")
    return values


def _build(cls: type, values: Any, source: str) -> Any:
    known = [f.name for f in fields(cls)]
    for name in _dict(values, source):
        if name not in known:
            raise ValueError(f"{name!r} is not a field of {source}{suggestion(str(name), known)}")
    try:
        return cls(**values)
    except (TypeError, StrictDataclassError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}.") from error


class Blocks(Dataset):
    """Tokens of a text, cut into blocks.

    Args:
        tokens: `[T]`; what is left at the end, less than a block, is not used.
        block_size: S.
        count: take so many blocks only, evenly spread.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, count: int | None = None) -> None:
        blocks = tokens[: len(tokens) // block_size * block_size].reshape(-1, block_size)
        if count is not None and count < len(blocks):
            blocks = blocks[np.linspace(0, len(blocks) - 1, count).round().astype(int)]
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(self.blocks[index].astype(np.int64))
        return {"input_ids": block, "labels": block}


class Images(Blocks):
    """Images and their classes.

    Args:
        pixels: `[T, C, H, W]`, from 0 to 255.
        labels: `[T]`.
        count: take so many only, evenly spread.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, count: int | None = None) -> None:
        super().__init__(np.arange(len(labels)), 1, count)
        self.pixels, self.labels = pixels, labels

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number = self.blocks[index, 0]
        pixels = torch.from_numpy(self.pixels[number]) / 127.5 - 1
        return {"pixel_values": pixels, "labels": torch.tensor(self.labels[number])}


@dataclass
class Tokens:
    """The texts of an experiment as token ids, or its images and their classes."""

    train: Any
    validation: dict[str, Any]
    tokens_per_byte: dict[str, float]  # of each validation text; empty for images


def load_tokens(experiment: Experiment, data: Path, work: Path) -> Tokens:
    """Reads the tokens of an experiment, and makes them first where they are not there; or reads its images.

    Args:
        experiment: says which text.
        data: the folder of texts, needed only the first time, or of images.
        work: the folder that gets `data-NAME`, with tokenizer.json, the tokens and data.json.

    Raises:
        ValueError: the text is missing, or the tokens there were made otherwise; or images do not fit the model.
    """
    if experiment.of_images:
        config = experiment.config(next(iter(experiment.variants)))
        held_out = {name: _images(data, pattern, config) for name, pattern in experiment.data.validation.items()}
        return Tokens(_images(data, experiment.data.train, config), held_out, {})
    folder = work / f"data-{experiment.data.name}"
    vocab_size = experiment.config(next(iter(experiment.variants))).vocab_size
    made_from = {**vars(experiment.data), "vocab_size": vocab_size}
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "data.json").exists():
            _make_tokens(experiment.data, vocab_size, data, folder, made_from)
    description = json.loads((folder / "data.json").read_text())
    if description["made_from"] != made_from:
        raise ValueError(
            f"The tokens in {folder} were made from {description['made_from']}, and {experiment.name} asks for "
            f"{made_from}. Give its data another name, or delete that folder."
        )
    train, *validation = (
        np.frombuffer(lzma.decompress((folder / f"{name}.xz").read_bytes()), dtype=np.uint16)
        for name in ("train", *experiment.data.validation)
    )
    return Tokens(
        train,
        dict(zip(experiment.data.validation, validation, strict=True)),
        description["tokens_per_byte"],
    )


def _make_tokens(spec: Data, vocab_size: int, data: Path, folder: Path, made_from: dict[str, Any]) -> None:
    """Tokenizes the texts; `data.json` comes last, when all else is there."""
    from ..data import load_tokenizer, train_tokenizer  # datasets, which running from tokens does not need

    texts = _texts(data, spec.train, spec.documents)
    tokenizer = load_tokenizer(str(data / spec.tokenizer)) if spec.tokenizer else train_tokenizer(texts, vocab_size)
    if len(tokenizer) > min(vocab_size, 2**16):
        raise ValueError(f"tokenizer={spec.tokenizer} has {len(tokenizer)} tokens; vocab_size is {vocab_size}.")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    sizes, tokens_per_byte = {}, {}
    for name, pattern in {"train": spec.train, **spec.validation}.items():
        if name != "train":
            texts = _texts(data, pattern, None)
        ids = [np.array([*part, tokenizer.eos_token_id], np.uint16) for part in _encode(tokenizer, texts)]
        tokens = np.concatenate(ids)
        (folder / f"{name}.xz").write_bytes(lzma.compress(tokens.tobytes(), preset=1))
        size = sum(len(text.encode()) for text in texts)
        sizes[name] = {"documents": len(texts), "bytes": size, "tokens": len(tokens)}
        tokens_per_byte[name] = len(tokens) / size
    description = {"made_from": made_from, "sizes": sizes, "tokens_per_byte": tokens_per_byte}
    write_json(folder / "data.json", description)


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _images(data: Path, pattern: str, config: PreTrainedConfig) -> tuple[np.ndarray, np.ndarray]:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=_files(data, pattern), split="train").with_format("numpy")[:]
    pixels, labels = np.asarray(rows["image"]), np.asarray(rows["label"])
    if pixels.ndim == 3:  # no colours
        pixels = pixels[..., None]
    shape = (config.image_size, config.image_size, config.num_channels)
    if pixels.shape[1:] != shape or labels.max() >= config.num_labels:
        raise ValueError(
            f"The images of {pattern} are of {list(pixels.shape[1:])} and of {labels.max() + 1} classes; the model "
            f"reads {list(shape)} (height, width, channels), and tells {config.num_labels} classes apart."
        )
    return pixels.transpose(0, 3, 1, 2), labels


def _files(data: Path, pattern: str) -> list[str]:
    files = sorted(map(str, data.glob(pattern)))
    if not files:
        raise ValueError(
            f"No file in the folder of texts {data} matches {pattern}. Name that folder with --data; results/README.md"
            " tells what the texts of the experiments are."
        )
    return files


def _texts(data: Path, pattern: str, documents: int | None) -> list[str]:
    from ..data import DataArguments, load_documents

    files = _files(data, pattern)
    rows, _ = load_documents(DataArguments(train_files=files, validation_documents=0))
    return list((rows if documents is None else rows.shuffle(seed=0).take(documents))["text"])
