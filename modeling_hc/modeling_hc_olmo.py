# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMo with hyper-connections: only what differs from `transformers.models.olmo`."""

from transformers.models.olmo.modeling_olmo import (
    OlmoDecoderLayer,
    OlmoForCausalLM,
    OlmoForSequenceClassification,
    OlmoLayerNorm,
    OlmoModel,
    OlmoPreTrainedModel,
)

from .configuration_hc import HCOlmoConfig
from .modeling_hc_common import HCDecoderLayerMixin, HCFinalNormMixin, HCModelMixin, HCPreTrainedModelMixin


class HCOlmoDecoderLayer(HCDecoderLayerMixin, OlmoDecoderLayer):
    """An OLMo layer whose attention and MLP are hyper-connected."""

    def hyper_connection_norm(self) -> dict[str, float | bool]:
        """Returns OLMo's own norm: LayerNorm without parameters, with the constant eps that upstream uses."""
        return {"eps": 1e-5, "centered": True, "affine": False}


class HCOlmoFinalLayerNorm(HCFinalNormMixin, OlmoLayerNorm):
    """The last norm, which closes the streams."""


class HCOlmoPreTrainedModel(HCPreTrainedModelMixin, OlmoPreTrainedModel):
    config: HCOlmoConfig
    _no_split_modules = ["HCOlmoDecoderLayer"]


class HCOlmoModel(HCModelMixin, HCOlmoPreTrainedModel, OlmoModel):
    """`OlmoModel` with hyper-connected layers."""

    parts = {"OlmoDecoderLayer": HCOlmoDecoderLayer, "OlmoLayerNorm": HCOlmoFinalLayerNorm}


class HCOlmoForCausalLM(HCOlmoPreTrainedModel, OlmoForCausalLM):
    """`OlmoForCausalLM` with hyper-connected layers."""


class HCOlmoForSequenceClassification(HCOlmoPreTrainedModel, OlmoForSequenceClassification):
    """`OlmoForSequenceClassification` with hyper-connected layers."""


HCOlmoPreTrainedModel.decoder_class = HCOlmoModel
