# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMo 3 with hyper-connections: only what differs from `transformers.models.olmo3`."""

from transformers.models.olmo3.modeling_olmo3 import (
    Olmo3DecoderLayer,
    Olmo3ForCausalLM,
    Olmo3ForSequenceClassification,
    Olmo3Model,
    Olmo3PreTrainedModel,
    Olmo3RMSNorm,
)

from .configuration_hc import HCOlmo3Config
from .modeling_hc_common import (
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    HCReorderedNormDecoderLayerMixin,
)


class HCOlmo3DecoderLayer(HCReorderedNormDecoderLayerMixin, Olmo3DecoderLayer):
    """An OLMo 3 layer whose attention and MLP are hyper-connected, each with the norm behind it."""


class HCOlmo3FinalRMSNorm(HCFinalNormMixin, Olmo3RMSNorm):
    """The last norm, which closes the streams."""


class HCOlmo3PreTrainedModel(HCPreTrainedModelMixin, Olmo3PreTrainedModel):
    config: HCOlmo3Config
    _no_split_modules = ["HCOlmo3DecoderLayer"]


class HCOlmo3Model(HCModelMixin, HCOlmo3PreTrainedModel, Olmo3Model):
    """`Olmo3Model` with hyper-connected layers."""

    parts = {"Olmo3DecoderLayer": HCOlmo3DecoderLayer, "Olmo3RMSNorm": HCOlmo3FinalRMSNorm}


class HCOlmo3ForCausalLM(HCOlmo3PreTrainedModel, Olmo3ForCausalLM):
    """`Olmo3ForCausalLM` with hyper-connected layers."""


class HCOlmo3ForSequenceClassification(HCOlmo3PreTrainedModel, Olmo3ForSequenceClassification):
    """`Olmo3ForSequenceClassification` with hyper-connected layers."""


HCOlmo3PreTrainedModel.decoder_class = HCOlmo3Model
