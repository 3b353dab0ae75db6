# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Qwen2 with hyper-connections: only what differs from `transformers.models.qwen2`."""

from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
)

from .configuration_hc import HCQwen2Config
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
)


class HCQwen2DecoderLayer(HCDecoderLayerMixin, Qwen2DecoderLayer):
    """A Qwen2 layer whose attention and MLP are hyper-connected."""


class HCQwen2FinalRMSNorm(HCFinalNormMixin, Qwen2RMSNorm):
    """The last norm, which closes the streams."""


class HCQwen2PreTrainedModel(HCPreTrainedModelMixin, Qwen2PreTrainedModel):
    config: HCQwen2Config
    _no_split_modules = ["HCQwen2DecoderLayer"]


class HCQwen2Model(HCModelMixin, HCQwen2PreTrainedModel, Qwen2Model):
    """`Qwen2Model` with hyper-connected layers."""

    parts = {"Qwen2DecoderLayer": HCQwen2DecoderLayer, "Qwen2RMSNorm": HCQwen2FinalRMSNorm}


class HCQwen2ForCausalLM(HCQwen2PreTrainedModel, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` with hyper-connected layers."""


class HCQwen2ForSequenceClassification(HCQwen2PreTrainedModel, Qwen2ForSequenceClassification):
    """`Qwen2ForSequenceClassification` with hyper-connected layers."""


class HCQwen2ForTokenClassification(HCQwen2PreTrainedModel, Qwen2ForTokenClassification):
    """`Qwen2ForTokenClassification` with hyper-connected layers."""


class HCQwen2ForQuestionAnswering(HCQwen2PreTrainedModel, Qwen2ForQuestionAnswering):
    """`Qwen2ForQuestionAnswering` with hyper-connected layers."""


HCQwen2PreTrainedModel.decoder_class = HCQwen2Model
