# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""OLMoE with hyper-connections: only what differs from `transformers.models.olmoe`."""

from transformers.models.olmoe.modeling_olmoe import (
    OlmoeDecoderLayer,
    OlmoeForCausalLM,
    OlmoeModel,
    OlmoePreTrainedModel,
    OlmoeRMSNorm,
)

from .configuration_hc import HCOlmoeConfig
from .modeling_hc_common import (
    HCDecoderLayerMixin,
    HCFinalNormMixin,
    HCModelMixin,
    HCMoeForCausalLMMixin,
    HCPreTrainedModelMixin,
)


class HCOlmoeDecoderLayer(HCDecoderLayerMixin, OlmoeDecoderLayer):
    """An OLMoE layer whose attention and mixture of experts are hyper-connected."""


class HCOlmoeFinalRMSNorm(HCFinalNormMixin, OlmoeRMSNorm):
    """The last norm, which closes the streams."""


class HCOlmoePreTrainedModel(HCPreTrainedModelMixin, OlmoePreTrainedModel):
    config: HCOlmoeConfig
    _no_split_modules = ["HCOlmoeDecoderLayer"]


class HCOlmoeModel(HCModelMixin, HCOlmoePreTrainedModel, OlmoeModel):
    """`OlmoeModel` with hyper-connected layers."""

    parts = {"OlmoeDecoderLayer": HCOlmoeDecoderLayer, "OlmoeRMSNorm": HCOlmoeFinalRMSNorm}


class HCOlmoeForCausalLM(HCMoeForCausalLMMixin, HCOlmoePreTrainedModel, OlmoeForCausalLM):
    """`OlmoeForCausalLM` with hyper-connected layers."""


HCOlmoePreTrainedModel.decoder_class = HCOlmoeModel
