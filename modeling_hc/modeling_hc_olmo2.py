# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMo 2 with hyper-connections: only what differs from `transformers.models.olmo2`."""

from transformers.models.olmo2.modeling_olmo2 import (
    Olmo2DecoderLayer,
    Olmo2ForCausalLM,
    Olmo2ForSequenceClassification,
    Olmo2Model,
    Olmo2PreTrainedModel,
    Olmo2RMSNorm,
)

from .configuration_hc import HCOlmo2Config
from .modeling_hc_common import (
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    HCReorderedNormDecoderLayerMixin,
)


class HCOlmo2DecoderLayer(HCReorderedNormDecoderLayerMixin, Olmo2DecoderLayer):
    """An OLMo 2 layer whose attention and MLP are hyper-connected, each with the norm behind it."""


class HCOlmo2FinalRMSNorm(HCFinalNormMixin, Olmo2RMSNorm):
    """The last norm, which closes the streams."""


class HCOlmo2PreTrainedModel(HCPreTrainedModelMixin, Olmo2PreTrainedModel):
    config: HCOlmo2Config
    _no_split_modules = ["HCOlmo2DecoderLayer"]


class HCOlmo2Model(HCModelMixin, HCOlmo2PreTrainedModel, Olmo2Model):
    """`Olmo2Model` with hyper-connected layers."""

    parts = {"Olmo2DecoderLayer": HCOlmo2DecoderLayer, "Olmo2RMSNorm": HCOlmo2FinalRMSNorm}


class HCOlmo2ForCausalLM(HCOlmo2PreTrainedModel, Olmo2ForCausalLM):
    """`Olmo2ForCausalLM` with hyper-connected layers."""


class HCOlmo2ForSequenceClassification(HCOlmo2PreTrainedModel, Olmo2ForSequenceClassification):
    """`Olmo2ForSequenceClassification` with hyper-connected layers."""


HCOlmo2PreTrainedModel.decoder_class = HCOlmo2Model
