# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""SmolLM3 with hyper-connections: only what differs from `transformers.models.smollm3`."""

from transformers.models.smollm3.modeling_smollm3 import (
    SmolLM3DecoderLayer,
    SmolLM3ForCausalLM,
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
    SmolLM3Model,
    SmolLM3PreTrainedModel,
    SmolLM3RMSNorm,
)

from .configuration_hc import HCSmolLM3Config
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
)


class HCSmolLM3DecoderLayer(HCDecoderLayerMixin, SmolLM3DecoderLayer):
    """A SmolLM3 layer whose attention and MLP are hyper-connected."""


class HCSmolLM3FinalRMSNorm(HCFinalNormMixin, SmolLM3RMSNorm):
    """The last norm, which closes the streams."""


class HCSmolLM3PreTrainedModel(HCPreTrainedModelMixin, SmolLM3PreTrainedModel):
    config: HCSmolLM3Config
    _no_split_modules = ["HCSmolLM3DecoderLayer"]


class HCSmolLM3Model(HCModelMixin, HCSmolLM3PreTrainedModel, SmolLM3Model):
    """`SmolLM3Model` with hyper-connected layers."""

    parts = {"SmolLM3DecoderLayer": HCSmolLM3DecoderLayer, "SmolLM3RMSNorm": HCSmolLM3FinalRMSNorm}


class HCSmolLM3ForCausalLM(HCSmolLM3PreTrainedModel, SmolLM3ForCausalLM):
    """`SmolLM3ForCausalLM` with hyper-connected layers."""


class HCSmolLM3ForSequenceClassification(HCSmolLM3PreTrainedModel, SmolLM3ForSequenceClassification):
    """`SmolLM3ForSequenceClassification` with hyper-connected layers."""


class HCSmolLM3ForTokenClassification(HCSmolLM3PreTrainedModel, SmolLM3ForTokenClassification):
    """`SmolLM3ForTokenClassification` with hyper-connected layers."""


class HCSmolLM3ForQuestionAnswering(HCSmolLM3PreTrainedModel, SmolLM3ForQuestionAnswering):
    """`SmolLM3ForQuestionAnswering` with hyper-connected layers."""


HCSmolLM3PreTrainedModel.decoder_class = HCSmolLM3Model
