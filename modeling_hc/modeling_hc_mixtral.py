# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Mixtral with hyper-connections: only what differs from `transformers.models.mixtral`."""

from transformers.models.mixtral.modeling_mixtral import (
    MixtralDecoderLayer,
    MixtralForCausalLM,
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
    MixtralPreTrainedModel,
    MixtralRMSNorm,
)

from .configuration_hc import HCMixtralConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCMoeForCausalLMMixin,
    HCPreTrainedModelMixin,
)


class HCMixtralDecoderLayer(HCDecoderLayerMixin, MixtralDecoderLayer):
    """A Mixtral layer whose attention and mixture of experts are hyper-connected."""


class HCMixtralFinalRMSNorm(HCFinalNormMixin, MixtralRMSNorm):
    """The last norm, which closes the streams."""


class HCMixtralPreTrainedModel(HCPreTrainedModelMixin, MixtralPreTrainedModel):
    config: HCMixtralConfig
    _no_split_modules = ["HCMixtralDecoderLayer"]


class HCMixtralModel(HCModelMixin, HCMixtralPreTrainedModel, MixtralModel):
    """`MixtralModel` with hyper-connected layers."""

    parts = {"MixtralDecoderLayer": HCMixtralDecoderLayer, "MixtralRMSNorm": HCMixtralFinalRMSNorm}


class HCMixtralForCausalLM(HCMoeForCausalLMMixin, HCMixtralPreTrainedModel, MixtralForCausalLM):
    """`MixtralForCausalLM` with hyper-connected layers."""


class HCMixtralForSequenceClassification(HCMixtralPreTrainedModel, MixtralForSequenceClassification):
    """`MixtralForSequenceClassification` with hyper-connected layers."""


class HCMixtralForTokenClassification(HCMixtralPreTrainedModel, MixtralForTokenClassification):
    """`MixtralForTokenClassification` with hyper-connected layers."""


class HCMixtralForQuestionAnswering(HCMixtralPreTrainedModel, MixtralForQuestionAnswering):
    """`MixtralForQuestionAnswering` with hyper-connected layers."""


HCMixtralPreTrainedModel.decoder_class = HCMixtralModel
