# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Qwen3 with hyper-connections: only what differs from `transformers.models.qwen3`."""

from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
    Qwen3PreTrainedModel,
    Qwen3RMSNorm,
)

from .configuration_hc import HCQwen3Config
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
)


class HCQwen3DecoderLayer(HCDecoderLayerMixin, Qwen3DecoderLayer):
    """A Qwen3 layer whose attention and MLP are hyper-connected."""


class HCQwen3FinalRMSNorm(HCFinalNormMixin, Qwen3RMSNorm):
    """The last norm, which closes the streams."""


class HCQwen3PreTrainedModel(HCPreTrainedModelMixin, Qwen3PreTrainedModel):
    config: HCQwen3Config
    _no_split_modules = ["HCQwen3DecoderLayer"]


class HCQwen3Model(HCModelMixin, HCQwen3PreTrainedModel, Qwen3Model):
    """`Qwen3Model` with hyper-connected layers."""

    parts = {"Qwen3DecoderLayer": HCQwen3DecoderLayer, "Qwen3RMSNorm": HCQwen3FinalRMSNorm}


class HCQwen3ForCausalLM(HCQwen3PreTrainedModel, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` with hyper-connected layers."""


class HCQwen3ForSequenceClassification(HCQwen3PreTrainedModel, Qwen3ForSequenceClassification):
    """`Qwen3ForSequenceClassification` with hyper-connected layers."""


class HCQwen3ForTokenClassification(HCQwen3PreTrainedModel, Qwen3ForTokenClassification):
    """`Qwen3ForTokenClassification` with hyper-connected layers."""


class HCQwen3ForQuestionAnswering(HCQwen3PreTrainedModel, Qwen3ForQuestionAnswering):
    """`Qwen3ForQuestionAnswering` with hyper-connected layers."""


HCQwen3PreTrainedModel.decoder_class = HCQwen3Model
