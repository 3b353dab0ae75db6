# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Loads any causal language model, or image classifier, for inference."""

from functools import partial
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..loading_hc import check_has_config


def load(name: str, images: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | BaseImageProcessor]:
    """Loads a causal language model, in the dtype of its checkpoint, and its tokenizer.

    Args:
        name: a folder, or a name on the Hub. Weights are read from safetensors files only: pickles can run code.
        images: load an image classifier and its image processor instead.

    Raises:
        ValueError: there is none, or it is damaged or not whole.
    """
    if name.count("/") > 1 and not Path(name).is_dir():
        raise ValueError(f"{name} is no folder, and no name of a model on the Hub either.")
    check_has_config(name)
    auto_class, kind = AutoModelForCausalLM, "causal language model"
    load_processor = AutoTokenizer.from_pretrained
    if images:
        auto_class, kind = AutoModelForImageClassification, "classifier of images"
        load_processor = partial(AutoImageProcessor.from_pretrained, backend="pil")
    try:
        config = AutoConfig.from_pretrained(name)
        if type(config) not in auto_class._model_mapping:
            of_images = type(config) in AutoModelForImageClassification._model_mapping
            hint = " It classifies images: `modeling-hc analyze` shows it with --images." if of_images else ""
            raise ValueError(f"model_type={config.model_type!r} is no {kind}.{hint}")
        processor = load_processor(name)
        model, report = auto_class.from_pretrained(name, dtype="auto", use_safetensors=True, output_loading_info=True)
    except Exception as error:  # each of many kinds of damage has its own exception
        absent = "" if Path(name).is_dir() else "There is no such folder. "
        raise ValueError(f"{name} cannot be loaded: {absent}{' '.join(str(error).split())}") from error
    if report["missing_keys"]:
        raise ValueError(
            f"{name} cannot be loaded: its weights lack {min(report['missing_keys'])} of {type(model).__name__}, "
            f"which its config.json asks for. Give a whole checkpoint of a {kind}."
        )
    return model.eval(), processor
