# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Granite with hyper-connections: only what differs from `transformers.models.granite`."""

from typing import Any

from torch import Tensor
from transformers.models.granite.modeling_granite import (
    GraniteDecoderLayer,
    GraniteForCausalLM,
    GraniteModel,
    GranitePreTrainedModel,
    GraniteRMSNorm,
)

from .configuration_hc import HCGraniteConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
)


class HCGraniteDecoderLayer(HCDecoderLayerMixin, GraniteDecoderLayer):
    """A Granite layer whose attention and MLP are hyper-connected. What they write is scaled."""

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return self.residual_multiplier * HCDecoderLayerMixin.attention_block(self, block_input, **kwargs)

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return self.residual_multiplier * HCDecoderLayerMixin.mlp_block(self, block_input)


class HCGraniteFinalRMSNorm(HCFinalNormMixin, GraniteRMSNorm):
    """The last norm, which closes the streams."""


class HCGranitePreTrainedModel(HCPreTrainedModelMixin, GranitePreTrainedModel):
    config: HCGraniteConfig
    _no_split_modules = ["HCGraniteDecoderLayer"]


class HCGraniteModel(HCModelMixin, HCGranitePreTrainedModel, GraniteModel):
    """`GraniteModel` with hyper-connected layers."""

    parts = {"GraniteDecoderLayer": HCGraniteDecoderLayer, "GraniteRMSNorm": HCGraniteFinalRMSNorm}


class HCGraniteForCausalLM(HCGranitePreTrainedModel, GraniteForCausalLM):
    """`GraniteForCausalLM` with hyper-connected layers."""


HCGranitePreTrainedModel.decoder_class = HCGraniteModel
