# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Gemma 3 (text) with hyper-connections: only what differs from `transformers.models.gemma3`."""

from typing import Any

from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3DecoderLayer,
    Gemma3ForCausalLM,
    Gemma3PreTrainedModel,
    Gemma3RMSNorm,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
)

from .configuration_hc import HCGemma3TextConfig
from .modeling_hc_common import (
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    HCReorderedNormDecoderLayerMixin,
    normalize,
)


class HCGemma3DecoderLayer(HCReorderedNormDecoderLayerMixin, Gemma3DecoderLayer):
    """A Gemma 3 layer whose attention and MLP are hyper-connected. Each has a norm before and one behind it."""

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        attention = self.self_attn(hidden_states=normalize(self.input_layernorm, block_input), **kwargs)[0]
        return normalize(self.post_attention_layernorm, attention)

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        mlp = self.mlp(normalize(self.pre_feedforward_layernorm, block_input))
        return normalize(self.post_feedforward_layernorm, mlp)


class HCGemma3FinalRMSNorm(HCFinalNormMixin, Gemma3RMSNorm):
    """The last norm, which closes the streams."""


class HCGemma3PreTrainedModel(HCPreTrainedModelMixin, Gemma3PreTrainedModel):
    config: HCGemma3TextConfig
    _no_split_modules = ["HCGemma3DecoderLayer"]

    def rescale(self, weight: nn.Parameter, factor: float) -> None:
        """Gemma's norms multiply by 1 + weight."""
        weight.add_(1).mul_(factor).sub_(1)


class HCGemma3TextModel(HCModelMixin, HCGemma3PreTrainedModel, Gemma3TextModel):
    """`Gemma3TextModel` with hyper-connected layers."""

    parts = {"Gemma3DecoderLayer": HCGemma3DecoderLayer, "Gemma3RMSNorm": HCGemma3FinalRMSNorm}


class HCGemma3ForCausalLM(HCGemma3PreTrainedModel, Gemma3ForCausalLM):
    """`Gemma3ForCausalLM` with hyper-connected layers."""


class HCGemma3TextForSequenceClassification(HCGemma3PreTrainedModel, Gemma3TextForSequenceClassification):
    """`Gemma3TextForSequenceClassification` with hyper-connected layers."""


HCGemma3PreTrainedModel.decoder_class = HCGemma3TextModel
