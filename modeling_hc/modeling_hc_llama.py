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
    LlamaRotaryEmbedding,
)

from .configuration_hc import HCLlamaConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCForCausalLMMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    hyper_connected,
)


class HCLlamaDecoderLayer(HCDecoderLayerMixin, LlamaDecoderLayer):
    """A Llama layer whose attention and MLP are hyper-connected."""


class HCLlamaFinalRMSNorm(HCFinalNormMixin, LlamaRMSNorm):
    """The last norm, which closes the streams."""


class HCLlamaPreTrainedModel(HCPreTrainedModelMixin, LlamaPreTrainedModel):
    config: HCLlamaConfig
    _no_split_modules = ["HCLlamaDecoderLayer"]


class HCLlamaModel(HCModelMixin, HCLlamaPreTrainedModel, LlamaModel):
    """`LlamaModel` with hyper-connected layers."""

    def __init__(self, config: HCLlamaConfig) -> None:
        norm = HCLlamaFinalRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        super().__init__(config, HCLlamaDecoderLayer, norm, LlamaRotaryEmbedding(config))

    forward = hyper_connected(LlamaModel.forward)


class HCLlamaForCausalLM(HCForCausalLMMixin, HCLlamaPreTrainedModel, LlamaForCausalLM):
    """`LlamaForCausalLM` with hyper-connected layers."""

    def __init__(self, config: HCLlamaConfig) -> None:
        super().__init__(config, HCLlamaModel(config))


class HCLlamaForSequenceClassification(HCLlamaPreTrainedModel, LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` with hyper-connected layers."""


class HCLlamaForTokenClassification(HCLlamaPreTrainedModel, LlamaForTokenClassification):
    """`LlamaForTokenClassification` with hyper-connected layers."""


class HCLlamaForQuestionAnswering(HCLlamaPreTrainedModel, LlamaForQuestionAnswering):
    """`LlamaForQuestionAnswering` with hyper-connected layers."""


HCLlamaPreTrainedModel.decoder_class = HCLlamaModel
