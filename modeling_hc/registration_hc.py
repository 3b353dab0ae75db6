# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Enters our models into the tables in which libraries look up a model type or a class name.

Many decisions are made by name: the Trainer shifts labels for the classes in transformers' list of causal models,
AutoTokenizer picks a tokenizer class by model type, PEFT picks default target modules by model type. A model that is
missing there gets another treatment than its residual parent, often without an error. Here it gets its parent's entry.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer
from transformers.models.auto import modeling_auto, tokenization_auto

# Not the module: without torchvision, older versions of transformers have something that raises in its place.
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import is_liger_kernel_available

_LIGER = "liger_kernel.transformers.monkey_patch"
# Modules with tables by model type, which may be imported later than this file, or never.
_LAZY_MODULES = (
    "transformers.cli.serving.utils",
    "transformers.conversion_mapping",
    "transformers.integrations.awq",
    "peft.utils.constants",
    "peft.utils.transformers_weight_conversion",
    "peft.tuners.adaption_prompt.config",
    _LIGER,
)


def register_names(config_class: Any) -> None:
    """Enters a family into the tables of transformers' Auto classes.

    Args:
        config_class: has `model_type`, `parent_model_type` and `auto_classes`.
    """
    model_type, parent_model_type = config_class.model_type, config_class.parent_model_type
    auto_classes = {name: path for name, path in config_class.auto_classes.items() if name != "AutoConfig"}
    class_names = {path.rpartition(".")[2] for path in auto_classes.values()}
    for name, table in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES") and f"HC{table.get(parent_model_type)}" in class_names:
            table[model_type] = f"HC{table[parent_model_type]}"
    tokenizer = tokenization_auto.TOKENIZER_MAPPING_NAMES.get(parent_model_type)
    if tokenizer is not None:
        tokenization_auto.TOKENIZER_MAPPING_NAMES[model_type] = tokenizer
    if parent_model_type in tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS:
        tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add(model_type)
    tokenizer_class = tokenization_auto.TOKENIZER_MAPPING.get(CONFIG_MAPPING[parent_model_type], None)
    if tokenizer_class is not None:
        AutoTokenizer.register(config_class, tokenizer_class, exist_ok=True)
    processors = IMAGE_PROCESSOR_MAPPING_NAMES.get(parent_model_type)
    if processors is not None:
        IMAGE_PROCESSOR_MAPPING_NAMES[model_type] = processors
        # Not `register`, after which upstream fails to look up anybody's processors of custom code: it asks the entry,
        # a dictionary of backends, for its `__name__`.
        types = IMAGE_PROCESSOR_MAPPING._reverse_config_mapping
        types[config_class.__name__] = parent_model_type
    if is_liger_kernel_available():  # `use_liger_kernel` imports it and looks the model type up in one step
        with suppress(ImportError):
            import_module(_LIGER)
    register_names_lazily(config_class)


def register_names_lazily(config_class: Any) -> None:
    """Enters a family into the tables of modules that may have been imported since.

    Args:
        config_class: see `register_names`.
    """
    for module in filter(None, map(sys.modules.get, _LAZY_MODULES)):
        for table in list(vars(module).values()):
            if not isinstance(table, dict) or config_class.model_type in table:
                continue
            for key in [key for key in table if isinstance(key, tuple) and config_class.parent_model_type in key]:
                if config_class.model_type not in key:
                    types = (*key, config_class.model_type)
                    table[types] = table.pop(key)
            if (entry := table.get(config_class.parent_model_type)) is not None:
                table[config_class.model_type] = _without_final_norm(entry) if module.__name__ == _LIGER else entry


def _without_final_norm(apply: Callable[..., None]) -> Callable[..., None]:
    """Returns a function of Liger that leaves the final norm as it is: Liger's would not reduce the streams."""

    @wraps(apply)
    def apply_to_ours(*args: Any, model: Any = None, **kwargs: Any) -> None:
        norm = {} if model is None else vars(getattr(model.base_model, model.base_model.final_norm))
        before = norm.get("forward")  # a wrapper of accelerate's, if any
        apply(*args, model=model, **kwargs)
        norm.pop("forward", None)
        if before is not None:
            norm["forward"] = before

    return apply_to_ours
