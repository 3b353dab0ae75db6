# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMoE with hyper-connections: only what differs from `transformers.models.olmoe`."""

from typing import Any

from torch import nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.olmoe.modeling_olmoe import (
    OlmoeDecoderLayer,
    OlmoeForCausalLM,
    OlmoeModel,
    OlmoePreTrainedModel,
    OlmoeRMSNorm,
    OlmoeRotaryEmbedding,
)

from .configuration_hc import HCOlmoeConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCForCausalLMMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    hyper_connected,
)


class HCOlmoeDecoderLayer(HCDecoderLayerMixin, OlmoeDecoderLayer):
    """An OLMoE layer whose attention and mixture of experts are hyper-connected."""

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        return [(self.self_attn.o_proj, "weight"), (self.mlp.experts, "down_proj")]


class HCOlmoeFinalRMSNorm(HCFinalNormMixin, OlmoeRMSNorm):
    """The last norm, which closes the streams."""


class HCOlmoePreTrainedModel(HCPreTrainedModelMixin, OlmoePreTrainedModel):
    config: HCOlmoeConfig
    _no_split_modules = ["HCOlmoeDecoderLayer"]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Asks the parent: upstream searches the text of the class's file for a decorator that stands in its own."""
        return OlmoePreTrainedModel._can_set_experts_implementation()


class HCOlmoeModel(HCModelMixin, HCOlmoePreTrainedModel, OlmoeModel):
    """`OlmoeModel` with hyper-connected layers."""

    def __init__(self, config: HCOlmoeConfig) -> None:
        norm = HCOlmoeFinalRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        super().__init__(config, HCOlmoeDecoderLayer, norm, OlmoeRotaryEmbedding(config))

    forward = hyper_connected(OlmoeModel.forward)


class HCOlmoeForCausalLM(HCForCausalLMMixin, HCOlmoePreTrainedModel, OlmoeForCausalLM):
    """`OlmoeForCausalLM` with hyper-connected layers."""

    def __init__(self, config: HCOlmoeConfig) -> None:
        super().__init__(config, HCOlmoeModel(config))
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts = config.num_experts
        self.num_experts_per_tok = config.num_experts_per_tok

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Upstream's, without the load-balancing loss: with a cache, its mask is longer than its router logits."""
        return super().prepare_inputs_for_generation(*args, **kwargs) | {"output_router_logits": False}


HCOlmoePreTrainedModel.decoder_class = HCOlmoeModel
# Checkpoints hold each expert apart, models all experts stacked; upstream finds the conversion by model type.
register_checkpoint_conversion_mapping("hc_olmoe", get_checkpoint_conversion_mapping("olmoe"), overwrite=True)
