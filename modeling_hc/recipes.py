# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Model recipes: plain config.json files, loaded with every key checked."""

import json
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .configuration_hc import families

RECIPES = Path(__file__).parent / "configuration"
"""The folder of all recipes: models/*.json, and training, images, diffusion, experiments and accelerate/*.yaml."""
if not RECIPES.is_dir():  # a checkout, where they are at the top
    RECIPES = Path(__file__).parents[1] / "configuration"

_UNDECLARED = ("head_dim",)  # upstream's attentions read it, also where the configuration has no such field


def find_recipe(kind: str, name: str | PathLike) -> Path:
    """Returns the file of a recipe.

    Args:
        kind: "models", "training", "images", "diffusion", "experiments" or "accelerate".
        name: of a recipe of this package, such as `hc-llama-60m-dhc4`, or the path of a file.

    Raises:
        ValueError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    ours = {file.stem: file for file in sorted((RECIPES / kind).iterdir())}
    if str(name) in ours:
        return ours[str(name)]
    if path.suffix or len(path.parts) > 1:
        raise ValueError(
            f"There is no file {path}. Give the path of a file, or the name of a recipe, without a suffix."
        )
    raise ValueError(f"There is no recipe {path} of {kind}{suggestion(str(name), ours)} There are {', '.join(ours)}.")


def load_recipe(path: str | PathLike, **overrides: Any) -> PreTrainedConfig:
    """Loads a model configuration from a recipe, and rejects keys that its class does not know.

    `AutoConfig` silently keeps a misspelt key and builds another model than was asked for.

    Args:
        path: a JSON file in the form of config.json, with a `model_type`, or the name of one of our recipes, such as
            `olmo-1b-dhc4`.
        **overrides: fields that replace those of the recipe.

    Returns:
        The configuration, of the class registered for its `model_type`.

    Raises:
        ValueError: the file is missing or no JSON object, its `model_type` is unknown, or a field is unknown or has a
            wrong value.
    """
    try:
        values = json.loads(find_recipe("models", path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot read the model recipe {path}: {' '.join(str(error).split())}. A recipe is a config.json file."
        ) from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise ValueError(f"The model recipe {path} has no model_type, such as llama or hc_llama.")
    return build_config(values, overrides, source=f"the model recipe {path}", known_keys_only=True)


def build_config(
    values: dict[str, Any], overrides: dict[str, Any], source: str, known_keys_only: bool = False
) -> PreTrainedConfig:
    """Builds the configuration of `values["model_type"]` from a config.json's content and fields that replace some.

    Args:
        values: the content of a config.json.
        overrides: fields that replace those in `values`; their names are always checked.
        source: what `values` are, for the error message.
        known_keys_only: whether to check the names in `values` too; an old checkpoint may have others.

    Raises:
        ValueError: an unknown `model_type`, or a field that is unknown or has a wrong value.
    """
    model_type = values["model_type"]
    if model_type not in CONFIG_MAPPING:
        hint = suggestion(model_type, CONFIG_MAPPING)
        raise ValueError(f"model_type={model_type!r} in {source} is not known to transformers{hint}")
    config_class = CONFIG_MAPPING[model_type]
    known = [*(field.name for field in fields(config_class)), *_UNDECLARED]
    for name in [*(values if known_keys_only else ()), *overrides]:
        if name not in known and name != "model_type":
            hint = suggestion(name, known)
            family = families().get(model_type)
            if family and name in [field.name for field in fields(family)]:
                hint = f", but of {family.model_type}: use a recipe of it, or hyper_connect=true on a checkpoint."
            raise ValueError(
                f"{name!r} in {source if name in values else 'config_overrides'} is not a field of "
                f"{config_class.__name__}{hint}"
            )
    try:
        return config_class.from_dict(values | overrides)
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"A field of {source} has a wrong value. {' '.join(str(error).split())}") from error


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence: "; did you mean ...?" where one of the known names is near, else a full stop."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
