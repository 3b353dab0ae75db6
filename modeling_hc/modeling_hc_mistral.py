# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Mistral with hyper-connections: only what differs from `transformers.models.mistral`."""

from transformers.models.mistral.modeling_mistral import (
    MistralDecoderLayer,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
    MistralPreTrainedModel,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)

from .configuration_hc import HCMistralConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCForCausalLMMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    hyper_connected,
)


class HCMistralDecoderLayer(HCDecoderLayerMixin, MistralDecoderLayer):
    """A Mistral layer whose attention and MLP are hyper-connected."""


class HCMistralFinalRMSNorm(HCFinalNormMixin, MistralRMSNorm):
    """The last norm, which closes the streams."""


class HCMistralPreTrainedModel(HCPreTrainedModelMixin, MistralPreTrainedModel):
    config: HCMistralConfig
    _no_split_modules = ["HCMistralDecoderLayer"]


class HCMistralModel(HCModelMixin, HCMistralPreTrainedModel, MistralModel):
    """`MistralModel` with hyper-connected layers."""

    def __init__(self, config: HCMistralConfig) -> None:
        norm = HCMistralFinalRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        super().__init__(config, HCMistralDecoderLayer, norm, MistralRotaryEmbedding(config))

    forward = hyper_connected(MistralModel.forward)


class HCMistralForCausalLM(HCForCausalLMMixin, HCMistralPreTrainedModel, MistralForCausalLM):
    """`MistralForCausalLM` with hyper-connected layers."""

    def __init__(self, config: HCMistralConfig) -> None:
        super().__init__(config, HCMistralModel(config))


class HCMistralForSequenceClassification(HCMistralPreTrainedModel, MistralForSequenceClassification):
    """`MistralForSequenceClassification` with hyper-connected layers."""


class HCMistralForTokenClassification(HCMistralPreTrainedModel, MistralForTokenClassification):
    """`MistralForTokenClassification` with hyper-connected layers."""


class HCMistralForQuestionAnswering(HCMistralPreTrainedModel, MistralForQuestionAnswering):
    """`MistralForQuestionAnswering` with hyper-connected layers."""


HCMistralPreTrainedModel.decoder_class = HCMistralModel
