# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""GPT-NeoX (Pythia) with hyper-connections: only what differs from `transformers.models.gpt_neox`."""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXLayer,
    GPTNeoXModel,
    GPTNeoXPreTrainedModel,
)

from .configuration_hc import HCGPTNeoXConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    normalize,
)


class HCGPTNeoXLayer(HCDecoderLayerMixin, GPTNeoXLayer):
    """A GPT-NeoX layer whose attention and MLP are hyper-connected."""

    @property
    def blocks(self) -> dict[str, str]:  # type: ignore[override]
        """One block where attention and MLP read the same, as in Pythia, and else one after the other."""
        return {"block_hc": "parallel_block"} if self.use_parallel_residual else HCDecoderLayerMixin.blocks

    def parallel_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        """Returns what attention and MLP add to the residual stream together, `[B, S, D]`."""
        attention = self.attention_block(block_input, **kwargs)  # first, as upstream: dropout draws in this order
        return self.mlp_block(block_input) + attention

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        attention = self.attention(normalize(self.input_layernorm, block_input), **kwargs)[0]
        return self.post_attention_dropout(attention)

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return self.post_mlp_dropout(self.mlp(normalize(self.post_attention_layernorm, block_input)))

    def hyper_connection_norm(self) -> dict[str, Any]:
        """Returns GPT-NeoX's own norm: LayerNorm, here without its bias."""
        return {"eps": self.config.layer_norm_eps, "centered": True}

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        return [(self.attention.dense, "weight"), (self.mlp.dense_4h_to_h, "weight")]


class HCGPTNeoXFinalLayerNorm(HCFinalNormMixin, nn.LayerNorm):
    """The last norm, which closes the streams."""


class HCGPTNeoXPreTrainedModel(HCPreTrainedModelMixin, GPTNeoXPreTrainedModel):
    config: HCGPTNeoXConfig
    _no_split_modules = ["HCGPTNeoXLayer"]


class HCGPTNeoXModel(HCModelMixin, HCGPTNeoXPreTrainedModel, GPTNeoXModel):
    """`GPTNeoXModel` with hyper-connected layers."""

    parts = {
        "GPTNeoXLayer": HCGPTNeoXLayer,
        "nn": SimpleNamespace(**vars(nn) | {"LayerNorm": HCGPTNeoXFinalLayerNorm}),
    }
    final_norm = "final_layer_norm"


class HCGPTNeoXForCausalLM(HCGPTNeoXPreTrainedModel, GPTNeoXForCausalLM):
    """`GPTNeoXForCausalLM` with hyper-connected layers."""


class HCGPTNeoXForSequenceClassification(HCGPTNeoXPreTrainedModel, GPTNeoXForSequenceClassification):
    """`GPTNeoXForSequenceClassification` with hyper-connected layers."""


class HCGPTNeoXForTokenClassification(HCGPTNeoXPreTrainedModel, GPTNeoXForTokenClassification):
    """`GPTNeoXForTokenClassification` with hyper-connected layers."""


class HCGPTNeoXForQuestionAnswering(HCGPTNeoXPreTrainedModel, GPTNeoXForQuestionAnswering):
    """`GPTNeoXForQuestionAnswering` with hyper-connected layers."""


HCGPTNeoXPreTrainedModel.decoder_class = HCGPTNeoXModel
