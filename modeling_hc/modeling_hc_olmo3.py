# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMo 3 with hyper-connections: only what differs from `transformers.models.olmo3`."""

from typing import Any

from torch import Tensor, nn
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
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    normalize,
)


class HCOlmo3DecoderLayer(HCDecoderLayerMixin, Olmo3DecoderLayer):
    """An OLMo 3 layer whose attention and MLP are hyper-connected, each with the norm behind it."""

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return normalize(self.post_attention_layernorm, self.self_attn(hidden_states=block_input, **kwargs)[0])

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return normalize(self.post_feedforward_layernorm, self.mlp(block_input))

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        """Returns the norms behind the blocks, which would undo any other scale."""
        return [(self.post_attention_layernorm, "weight"), (self.post_feedforward_layernorm, "weight")]


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
