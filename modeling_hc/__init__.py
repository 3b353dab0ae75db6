# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Hyper-Connections for Hugging Face Transformers; importing it registers the models with the Auto classes."""

import sys

import transformers
from transformers import AutoConfig

from . import modeling_hc_llama, modeling_hc_mistral, modeling_hc_olmo, modeling_hc_olmoe
from .configuration_hc import HCLlamaConfig, HCMistralConfig, HCOlmoConfig, HCOlmoeConfig
from .dispatch_hc import kernels
from .hyper_connections import DynamicHyperConnection, HyperConnection, StaticHyperConnection
from .modeling_hc_llama import (
    HCLlamaForCausalLM,
    HCLlamaForQuestionAnswering,
    HCLlamaForSequenceClassification,
    HCLlamaForTokenClassification,
    HCLlamaModel,
)
from .modeling_hc_mistral import (
    HCMistralForCausalLM,
    HCMistralForQuestionAnswering,
    HCMistralForSequenceClassification,
    HCMistralForTokenClassification,
    HCMistralModel,
)
from .modeling_hc_olmo import HCOlmoForCausalLM, HCOlmoForSequenceClassification, HCOlmoModel
from .modeling_hc_olmoe import HCOlmoeForCausalLM, HCOlmoeModel
from .optimization import parameter_groups

__version__ = "0.1.0"

__all__ = [
    "DynamicHyperConnection",
    "HCLlamaConfig",
    "HCLlamaForCausalLM",
    "HCLlamaForQuestionAnswering",
    "HCLlamaForSequenceClassification",
    "HCLlamaForTokenClassification",
    "HCLlamaModel",
    "HCMistralConfig",
    "HCMistralForCausalLM",
    "HCMistralForQuestionAnswering",
    "HCMistralForSequenceClassification",
    "HCMistralForTokenClassification",
    "HCMistralModel",
    "HCOlmoConfig",
    "HCOlmoForCausalLM",
    "HCOlmoForSequenceClassification",
    "HCOlmoModel",
    "HCOlmoeConfig",
    "HCOlmoeForCausalLM",
    "HCOlmoeModel",
    "HyperConnection",
    "StaticHyperConnection",
    "kernels",
    "parameter_groups",
]

for _config, _module in (
    (HCLlamaConfig, modeling_hc_llama),
    (HCMistralConfig, modeling_hc_mistral),
    (HCOlmoConfig, modeling_hc_olmo),
    (HCOlmoeConfig, modeling_hc_olmoe),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _config.register_for_auto_class()
    for _auto_name, _path in _config.auto_classes.items():
        if _auto_name == "AutoConfig":
            continue
        _class = getattr(_module, _path.rpartition(".")[2])
        _class.register_for_auto_class(_auto_name)
        getattr(transformers, _auto_name).register(_config, _class, exist_ok=True)
        # Pipelines, TRL and servers look architectures up in transformers. It has replaced its own module by now.
        for _transformers in (transformers, sys.modules["transformers"]):
            setattr(_transformers, _class.__name__, _class)
