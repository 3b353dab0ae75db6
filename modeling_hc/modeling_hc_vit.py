# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""ViT with hyper-connections: only what differs from `transformers.models.vit`."""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers.models.vit.modeling_vit import (
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTLayer,
    ViTModel,
    ViTPreTrainedModel,
)

from .configuration_hc import HCViTConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCPreTrainedModelMixin,
    Unfinished,
    normalize,
)


class HCViTLayer(HCDecoderLayerMixin, ViTLayer):
    """A ViT layer whose attention and MLP are hyper-connected."""

    def __init__(self, config: HCViTConfig) -> None:
        ViTLayer.__init__(self, config)  # without its number, which `HCViTModel.post_init` knows

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return self.dropout(self.attention(normalize(self.layernorm_before, block_input), **kwargs)[0])

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return self.dropout(self.mlp(normalize(self.layernorm_after, block_input)))

    def hyper_connection_norm(self) -> dict[str, Any]:
        """Returns ViT's own norm: LayerNorm, here without its bias."""
        return {"eps": self.config.layer_norm_eps, "centered": True}

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        return [(self.attention.o_proj, "weight"), (self.mlp.fc2, "weight")]

    def forward(
        self, hidden_states: Tensor | Unfinished, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor | Unfinished:
        """Takes the mask by its place, as upstream's model gives it."""
        return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)


class HCViTFinalLayerNorm(HCFinalNormMixin, nn.LayerNorm):
    """The last norm, which closes the streams."""


class HCViTPreTrainedModel(HCPreTrainedModelMixin, ViTPreTrainedModel):
    config: HCViTConfig
    _no_split_modules = ["ViTEmbeddings", "HCViTLayer"]


class HCViTModel(HCModelMixin, HCViTPreTrainedModel, ViTModel):
    """`ViTModel` with hyper-connected layers."""

    parts = {"ViTLayer": HCViTLayer, "nn": SimpleNamespace(**vars(nn) | {"LayerNorm": HCViTFinalLayerNorm})}
    final_norm = "layernorm"

    def post_init(self) -> None:
        for i, layer in enumerate(self.layers):
            layer.connect(self.config, i)
        super().post_init()


class HCViTForImageClassification(HCViTPreTrainedModel, ViTForImageClassification):
    """`ViTForImageClassification` with hyper-connected layers."""


class HCViTForMaskedImageModeling(HCViTPreTrainedModel, ViTForMaskedImageModeling):
    """`ViTForMaskedImageModeling` with hyper-connected layers."""


HCViTPreTrainedModel.decoder_class = HCViTModel
