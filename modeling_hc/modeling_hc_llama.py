# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Llama with hyper-connections: only what differs from `transformers.models.llama`."""

from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
)

from .configuration_hc import HCLlamaConfig
from .modeling_hc_common import HCDecoderLayerMixin, HCFinalNormMixin, HCModelMixin, HCPreTrainedModelMixin


class HCLlamaDecoderLayer(HCDecoderLayerMixin, LlamaDecoderLayer):
    """A Llama layer whose attention and MLP are hyper-connected."""


class HCLlamaFinalRMSNorm(HCFinalNormMixin, LlamaRMSNorm):
    """The last norm, which closes the streams."""


class HCLlamaPreTrainedModel(HCPreTrainedModelMixin, LlamaPreTrainedModel):
    config: HCLlamaConfig
    _no_split_modules = ["HCLlamaDecoderLayer"]


class HCLlamaModel(HCModelMixin, HCLlamaPreTrainedModel, LlamaModel):
    """`LlamaModel` with hyper-connected layers."""

    parts = {"LlamaDecoderLayer": HCLlamaDecoderLayer, "LlamaRMSNorm": HCLlamaFinalRMSNorm}


class HCLlamaForCausalLM(HCLlamaPreTrainedModel, LlamaForCausalLM):
    """`LlamaForCausalLM` with hyper-connected layers."""


class HCLlamaForSequenceClassification(HCLlamaPreTrainedModel, LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` with hyper-connected layers."""


class HCLlamaForTokenClassification(HCLlamaPreTrainedModel, LlamaForTokenClassification):
    """`LlamaForTokenClassification` with hyper-connected layers."""


class HCLlamaForQuestionAnswering(HCLlamaPreTrainedModel, LlamaForQuestionAnswering):
    """`LlamaForQuestionAnswering` with hyper-connected layers."""


HCLlamaPreTrainedModel.decoder_class = HCLlamaModel
