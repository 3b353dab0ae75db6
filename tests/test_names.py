# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Where transformers and PEFT decide by model type or class name, they decide for ours as for the residual parent.

A new version that adds such a place fails here with its name. Enter our models there (`registration_hc`), or add the
place to `OTHERWISE` with the reason why its decision is not ours.
"""

import ast
import importlib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

from modeling_hc.configuration_hc import HyperConnectionConfigMixin
from modeling_hc.registration_hc import register_names_lazily

PACKAGES = ["transformers", "peft", "accelerate"]
CONFIGS = HyperConnectionConfigMixin.__subclasses__()
OTHERWISE = {
    "transformers.cli.chat": "an example of a prompt about llamas",
    "transformers.integrations.ggml": "GGUF files hold residual models; convert the checkpoint that they were made of",
    "transformers.integrations.gguf.gguf_tokenizer_mapping": "GGUF",
    "transformers.modeling_gguf_pytorch_utils": "GGUF",
    "transformers.conversion_mapping:_MODEL_TO_CONVERSION_PATTERN": "HCPreTrainedModelMixin registers the patterns",
    "transformers.conversion_mapping:_build_checkpoint_conversion_mapping": "HCPreTrainedModelMixin registers them",
    "transformers.models.auto.modeling_auto:MODEL_FOR_DECISION_MAPPING_NAMES": "the head is another model's",
    "transformers.models.auto.auto_mappings": "AutoConfig.register; these are the classes in transformers.models",
    "transformers.models.auto.configuration_auto": "renames Mistral checkpoints with layer types to Ministral",
    "transformers.models.auto.tokenization_auto:tokenizer_class_from_name": "MistralCommonBackend's module",
    "transformers.tokenization_mistral_common": "a file format",
    "transformers.tokenization_utils_tokenizers": "a fix for configurations older than transformers 5, and a format",
    "peft.peft_model": "a list for transformers older than 4.38",
    "peft.tuners.tuners_utils": "the name of a layout of layers, found by attributes",
    "peft.utils.transformers_weight_conversion:_MODEL_TO_CONVERSION_PATTERN": "values are patterns, one named mixtral",
    "accelerate.utils.dataclasses": "Megatron-LM, which builds its own model",
}


@cache
def places(package: str) -> list[tuple[str, str, frozenset[str]]]:
    """Returns module, definition or variable, and the strings in it, of all of a package but the models' own files."""
    root = Path(importlib.import_module(package).__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if package == "transformers" and parts[0] == "models" and parts[1] != "auto":
            continue
        module = ".".join([package, *parts]).removesuffix(".__init__")
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            constants = {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)}
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement
            target = getattr(target, "target", target)  # of an annotated assignment
            target = target.value if isinstance(target, ast.Subscript) else target
            name = getattr(target, "name", None) or getattr(target, "id", None) or f"line {statement.lineno}"
            found.append((module, name, frozenset(c for c in constants if isinstance(c, str))))
    return found


def holds(table: Any, name: str) -> bool:
    """Whether a table has a name among its keys, its entries, or its values."""
    if isinstance(table, dict):
        keys = chain.from_iterable(key for key in table if isinstance(key, tuple))
        return name in table or name in keys or name in [value for value in table.values() if isinstance(value, str)]
    return isinstance(table, set | frozenset | list | tuple) and name in table


def names(config_class: Any) -> dict[str, str]:
    """Returns our names by those of the residual parent: of the model type and of the classes."""
    classes = {path.rpartition(".HC")[2] for path in config_class.auto_classes.values() if "modeling" in path}
    return {config_class.parent_model_type: config_class.model_type} | {name: f"HC{name}" for name in classes}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_table_that_holds_a_parent_by_name_holds_ours(config_class: Any, package: str) -> None:
    ours = names(config_class)
    wrong = []
    for module, place, strings in places(package):
        if strings.isdisjoint(ours) or module in OTHERWISE or f"{module}:{place}" in OTHERWISE:
            continue
        table = getattr(importlib.import_module(module), place, None)
        register_names_lazily(config_class)  # as PEFT makes the configuration do, once it is imported
        held = [name for name in ours if holds(table, name)]
        if not held or not all(holds(table, ours[name]) for name in held):
            wrong.append(f"{module}.{place}")
        elif isinstance(table, dict) and (parent := config_class.parent_model_type) in table:
            entry = table[parent]
            if table[ours[parent]] != (ours.get(entry, entry) if isinstance(entry, str) else entry):
                wrong.append(f"{module}.{place}[{parent!r}]")
    assert wrong == []


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="the list is that of the newest transformers"
)
def test_no_exception_is_out_of_date() -> None:
    all_names = {name for config_class in CONFIGS for name in names(config_class)}
    seen = set()
    for module, place, strings in chain.from_iterable(map(places, PACKAGES)):
        if not strings.isdisjoint(all_names):
            seen |= {module, f"{module}:{place}"}
    assert set(OTHERWISE) - seen == set()
