# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Hyper-Connections for Hugging Face Transformers; importing it registers the models with the Auto classes."""

import sys
from importlib import import_module

import transformers
from transformers import AutoConfig

from .configuration_hc import (
    HCGemma3TextConfig,
    HCGPTNeoXConfig,
    HCGraniteConfig,
    HCLlamaConfig,
    HCMistralConfig,
    HCMixtralConfig,
    HCOlmo2Config,
    HCOlmo3Config,
    HCOlmoConfig,
    HCOlmoeConfig,
    HCQwen2Config,
    HCQwen3Config,
    HCQwen3MoeConfig,
    HCSmolLM3Config,
    HCViTConfig,
)
from .connect import hyper_connect
from .dispatch_hc import kernels
from .hyper_connections import DynamicHyperConnection, HyperConnection, StaticHyperConnection
from .modeling_hc_gemma3 import (
    HCGemma3ForCausalLM,
    HCGemma3TextForSequenceClassification,
    HCGemma3TextModel,
)
from .modeling_hc_gpt_neox import (
    HCGPTNeoXForCausalLM,
    HCGPTNeoXForQuestionAnswering,
    HCGPTNeoXForSequenceClassification,
    HCGPTNeoXForTokenClassification,
    HCGPTNeoXModel,
)
from .modeling_hc_granite import (
    HCGraniteForCausalLM,
    HCGraniteModel,
)
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
from .modeling_hc_mixtral import (
    HCMixtralForCausalLM,
    HCMixtralForQuestionAnswering,
    HCMixtralForSequenceClassification,
    HCMixtralForTokenClassification,
    HCMixtralModel,
)
from .modeling_hc_olmo import (
    HCOlmoForCausalLM,
    HCOlmoForSequenceClassification,
    HCOlmoModel,
)
from .modeling_hc_olmo2 import (
    HCOlmo2ForCausalLM,
    HCOlmo2ForSequenceClassification,
    HCOlmo2Model,
)
from .modeling_hc_olmo3 import (
    HCOlmo3ForCausalLM,
    HCOlmo3ForSequenceClassification,
    HCOlmo3Model,
)
from .modeling_hc_olmoe import (
    HCOlmoeForCausalLM,
    HCOlmoeModel,
)
from .modeling_hc_qwen2 import (
    HCQwen2ForCausalLM,
    HCQwen2ForQuestionAnswering,
    HCQwen2ForSequenceClassification,
    HCQwen2ForTokenClassification,
    HCQwen2Model,
)
from .modeling_hc_qwen3 import (
    HCQwen3ForCausalLM,
    HCQwen3ForQuestionAnswering,
    HCQwen3ForSequenceClassification,
    HCQwen3ForTokenClassification,
    HCQwen3Model,
)
from .modeling_hc_qwen3_moe import (
    HCQwen3MoeForCausalLM,
    HCQwen3MoeForQuestionAnswering,
    HCQwen3MoeForSequenceClassification,
    HCQwen3MoeForTokenClassification,
    HCQwen3MoeModel,
)
from .modeling_hc_smollm3 import (
    HCSmolLM3ForCausalLM,
    HCSmolLM3ForQuestionAnswering,
    HCSmolLM3ForSequenceClassification,
    HCSmolLM3ForTokenClassification,
    HCSmolLM3Model,
)
from .modeling_hc_vit import (
    HCViTForImageClassification,
    HCViTForMaskedImageModeling,
    HCViTModel,
)
from .optimization import parameter_groups

__version__ = "0.1.0"

__all__ = [
    "DynamicHyperConnection",
    "HCGPTNeoXConfig",
    "HCGPTNeoXForCausalLM",
    "HCGPTNeoXForQuestionAnswering",
    "HCGPTNeoXForSequenceClassification",
    "HCGPTNeoXForTokenClassification",
    "HCGPTNeoXModel",
    "HCGemma3ForCausalLM",
    "HCGemma3TextConfig",
    "HCGemma3TextForSequenceClassification",
    "HCGemma3TextModel",
    "HCGraniteConfig",
    "HCGraniteForCausalLM",
    "HCGraniteModel",
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
    "HCMixtralConfig",
    "HCMixtralForCausalLM",
    "HCMixtralForQuestionAnswering",
    "HCMixtralForSequenceClassification",
    "HCMixtralForTokenClassification",
    "HCMixtralModel",
    "HCOlmo2Config",
    "HCOlmo2ForCausalLM",
    "HCOlmo2ForSequenceClassification",
    "HCOlmo2Model",
    "HCOlmo3Config",
    "HCOlmo3ForCausalLM",
    "HCOlmo3ForSequenceClassification",
    "HCOlmo3Model",
    "HCOlmoConfig",
    "HCOlmoForCausalLM",
    "HCOlmoForSequenceClassification",
    "HCOlmoModel",
    "HCOlmoeConfig",
    "HCOlmoeForCausalLM",
    "HCOlmoeModel",
    "HCQwen2Config",
    "HCQwen2ForCausalLM",
    "HCQwen2ForQuestionAnswering",
    "HCQwen2ForSequenceClassification",
    "HCQwen2ForTokenClassification",
    "HCQwen2Model",
    "HCQwen3Config",
    "HCQwen3ForCausalLM",
    "HCQwen3ForQuestionAnswering",
    "HCQwen3ForSequenceClassification",
    "HCQwen3ForTokenClassification",
    "HCQwen3Model",
    "HCQwen3MoeConfig",
    "HCQwen3MoeForCausalLM",
    "HCQwen3MoeForQuestionAnswering",
    "HCQwen3MoeForSequenceClassification",
    "HCQwen3MoeForTokenClassification",
    "HCQwen3MoeModel",
    "HCSmolLM3Config",
    "HCSmolLM3ForCausalLM",
    "HCSmolLM3ForQuestionAnswering",
    "HCSmolLM3ForSequenceClassification",
    "HCSmolLM3ForTokenClassification",
    "HCSmolLM3Model",
    "HCViTConfig",
    "HCViTForImageClassification",
    "HCViTForMaskedImageModeling",
    "HCViTModel",
    "HyperConnection",
    "StaticHyperConnection",
    "hyper_connect",
    "kernels",
    "parameter_groups",
]

for _config in (
    HCLlamaConfig,
    HCMistralConfig,
    HCOlmoConfig,
    HCOlmoeConfig,
    HCQwen2Config,
    HCQwen3Config,
    HCQwen3MoeConfig,
    HCMixtralConfig,
    HCOlmo2Config,
    HCOlmo3Config,
    HCGemma3TextConfig,
    HCGraniteConfig,
    HCSmolLM3Config,
    HCGPTNeoXConfig,
    HCViTConfig,
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _config.register_for_auto_class()
    for _auto_name, _path in _config.auto_classes.items():
        if _auto_name == "AutoConfig":
            continue
        _file, _, _name = _path.partition(".")
        _class = getattr(import_module(f".{_file}", __name__), _name)
        _class.register_for_auto_class(_auto_name)
        getattr(transformers, _auto_name).register(_config, _class, exist_ok=True)
        # Pipelines, TRL and servers look architectures up in transformers. It has replaced its own module by now.
        for _transformers in (transformers, sys.modules["transformers"]):
            setattr(_transformers, _class.__name__, _class)
