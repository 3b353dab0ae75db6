# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Qwen3-MoE with hyper-connections: only what differs from `transformers.models.qwen3_moe`."""

from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeDecoderLayer,
    Qwen3MoeForCausalLM,
    Qwen3MoeForQuestionAnswering,
    Qwen3MoeForSequenceClassification,
    Qwen3MoeForTokenClassification,
    Qwen3MoeModel,
    Qwen3MoePreTrainedModel,
    Qwen3MoeRMSNorm,
)

from .configuration_hc import HCQwen3MoeConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCMoeForCausalLMMixin,
    HCPreTrainedModelMixin,
)


class HCQwen3MoeDecoderLayer(HCDecoderLayerMixin, Qwen3MoeDecoderLayer):
    """A Qwen3-MoE layer whose attention and mixture of experts, or MLP, are hyper-connected."""


class HCQwen3MoeFinalRMSNorm(HCFinalNormMixin, Qwen3MoeRMSNorm):
    """The last norm, which closes the streams."""


class HCQwen3MoePreTrainedModel(HCPreTrainedModelMixin, Qwen3MoePreTrainedModel):
    config: HCQwen3MoeConfig
    _no_split_modules = ["HCQwen3MoeDecoderLayer"]


class HCQwen3MoeModel(HCModelMixin, HCQwen3MoePreTrainedModel, Qwen3MoeModel):
    """`Qwen3MoeModel` with hyper-connected layers."""

    parts = {"Qwen3MoeDecoderLayer": HCQwen3MoeDecoderLayer, "Qwen3MoeRMSNorm": HCQwen3MoeFinalRMSNorm}


class HCQwen3MoeForCausalLM(HCMoeForCausalLMMixin, HCQwen3MoePreTrainedModel, Qwen3MoeForCausalLM):
    """`Qwen3MoeForCausalLM` with hyper-connected layers."""


class HCQwen3MoeForSequenceClassification(HCQwen3MoePreTrainedModel, Qwen3MoeForSequenceClassification):
    """`Qwen3MoeForSequenceClassification` with hyper-connected layers."""


class HCQwen3MoeForTokenClassification(HCQwen3MoePreTrainedModel, Qwen3MoeForTokenClassification):
    """`Qwen3MoeForTokenClassification` with hyper-connected layers."""


class HCQwen3MoeForQuestionAnswering(HCQwen3MoePreTrainedModel, Qwen3MoeForQuestionAnswering):
    """`Qwen3MoeForQuestionAnswering` with hyper-connected layers."""


HCQwen3MoePreTrainedModel.decoder_class = HCQwen3MoeModel
