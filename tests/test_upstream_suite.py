# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""transformers' own shared model tests, with the stock Llama as the measure.

Each of upstream's tests runs on HCLlama. Where it fails or is skipped there, it runs on Llama too: what passes for
Llama must pass for HCLlama. `make test` fetches the tests, which only the source distribution of transformers holds.
"""

import inspect
import sys
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig

from modeling_hc import HCLlamaConfig

FOLDER = Path(sys.prefix) / "upstream" / f"transformers-{transformers.__version__}" / "tests"
if not FOLDER.is_dir():
    pytest.skip(f"upstream's tests are not in {FOLDER}; `make test` fetches them", allow_module_level=True)
pytest.importorskip("parameterized", reason="upstream's tests need it")


def _package(name: str, *path: str, **members: Any) -> None:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = list(path)
    vars(module).update(members)


# The source distribution leaves out the folders of these tests: stand-ins without any test take their places.
_package("upstream", str(FOLDER))
for _missing in ("exporters", "generation", "utils"):
    _package(f"upstream.{_missing}")
_package("upstream.exporters.test_export", ExportTesterMixin=object)
_package("upstream.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
_package("upstream.utils.test_configuration_utils", config_common_kwargs={})

from upstream.test_configuration_common import ConfigTester  # noqa: E402
from upstream.test_modeling_common import (  # noqa: E402
    GenerationTesterMixin,
    ModelTesterMixin,
    ids_tensor,
    random_attention_mask,
)

HEADS = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
]


class Sizes:
    """What upstream's tests ask of a model's tester."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 3, 7, 32, 2, 4
    is_training = True

    def __init__(self, config_class: type) -> None:
        self.config_class = config_class

    def get_config(self) -> Any:
        return self.config_class(
            vocab_size=99,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "input_ids": ids_tensor(shape, 99),
            "attention_mask": random_attention_mask(shape),
        }


class Suite(ModelTesterMixin, GenerationTesterMixin):
    config_class: type

    def setUp(self) -> None:
        self.model_tester = Sizes(self.config_class)
        self.all_model_classes = tuple(
            getattr(transformers, auto_class)._model_mapping[self.config_class] for auto_class in HEADS
        )

    def test_config(self) -> None:
        ConfigTester(self, config_class=self.config_class, hidden_size=32).run_common_tests()


class _Llama(Suite, unittest.TestCase):
    config_class = LlamaConfig
    __test__ = False


class TestHCLlamaKeepsWhatLlamaKeeps(Suite, unittest.TestCase):
    config_class = HCLlamaConfig


def _measured(name: str, test: Callable) -> Callable:
    def run(self: unittest.TestCase) -> None:
        try:
            test(self)
        except (Exception, pytest.skip.Exception) as mine:
            llama = _Llama(name)
            llama.setUp()
            try:
                getattr(llama, name)()
            except (Exception, pytest.skip.Exception) as theirs:
                raise unittest.SkipTest(f"Llama does not pass either: {str(theirs)[:200]}") from mine
            raise AssertionError(f"Llama passes {name}, HCLlama does not") from mine

    run.__name__ = name
    return run


for _name, _test in inspect.getmembers(TestHCLlamaKeepsWhatLlamaKeeps, inspect.isfunction):
    if _name.startswith("test_"):
        setattr(TestHCLlamaKeepsWhatLlamaKeeps, _name, _measured(_name, _test))
