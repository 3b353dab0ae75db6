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
)

from .configuration_hc import HCMistralConfig
from .modeling_hc_common import HCDecoderLayerMixin, HCFinalNormMixin, HCModelMixin, HCPreTrainedModelMixin


class HCMistralDecoderLayer(HCDecoderLayerMixin, MistralDecoderLayer):
    """A Mistral layer whose attention and MLP are hyper-connected."""


class HCMistralFinalRMSNorm(HCFinalNormMixin, MistralRMSNorm):
    """The last norm, which closes the streams."""


class HCMistralPreTrainedModel(HCPreTrainedModelMixin, MistralPreTrainedModel):
    config: HCMistralConfig
    _no_split_modules = ["HCMistralDecoderLayer"]


class HCMistralModel(HCModelMixin, HCMistralPreTrainedModel, MistralModel):
    """`MistralModel` with hyper-connected layers."""

    parts = {"MistralDecoderLayer": HCMistralDecoderLayer, "MistralRMSNorm": HCMistralFinalRMSNorm}


class HCMistralForCausalLM(HCMistralPreTrainedModel, MistralForCausalLM):
    """`MistralForCausalLM` with hyper-connected layers."""


class HCMistralForSequenceClassification(HCMistralPreTrainedModel, MistralForSequenceClassification):
    """`MistralForSequenceClassification` with hyper-connected layers."""


class HCMistralForTokenClassification(HCMistralPreTrainedModel, MistralForTokenClassification):
    """`MistralForTokenClassification` with hyper-connected layers."""


class HCMistralForQuestionAnswering(HCMistralPreTrainedModel, MistralForQuestionAnswering):
    """`MistralForQuestionAnswering` with hyper-connected layers."""


HCMistralPreTrainedModel.decoder_class = HCMistralModel
