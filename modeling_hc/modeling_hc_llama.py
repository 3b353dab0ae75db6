# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Llama with hyper-connections: only what differs from `transformers.models.llama`."""

from torch import nn
from transformers import AutoModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from .configuration_hc import HCLlamaConfig
from .modeling_hc_common import HCDecoderLayerMixin, HCPreTrainedModelMixin, reduces_hidden_states


class HCLlamaDecoderLayer(HCDecoderLayerMixin, LlamaDecoderLayer):
    """A Llama layer whose attention and MLP are hyper-connected."""


class HCLlamaPreTrainedModel(HCPreTrainedModelMixin, LlamaPreTrainedModel):
    config: HCLlamaConfig
    _no_split_modules = ["HCLlamaDecoderLayer"]


class HCLlamaModel(HCLlamaPreTrainedModel, LlamaModel):
    """`LlamaModel` with hyper-connected layers."""

    def __init__(self, config: HCLlamaConfig) -> None:
        super(LlamaModel, self).__init__(config)  # not LlamaModel's own, which would build the residual layers
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(HCLlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    forward = reduces_hidden_states(LlamaModel.forward)


class HCLlamaForCausalLM(HCLlamaPreTrainedModel, LlamaForCausalLM):
    """`LlamaForCausalLM` with hyper-connected layers."""

    def __init__(self, config: HCLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = HCLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class HCLlamaForSequenceClassification(HCLlamaPreTrainedModel, LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` with hyper-connected layers."""


class HCLlamaForTokenClassification(HCLlamaPreTrainedModel, LlamaForTokenClassification):
    """`LlamaForTokenClassification` with hyper-connected layers."""


class HCLlamaForQuestionAnswering(HCLlamaPreTrainedModel, LlamaForQuestionAnswering):
    """`LlamaForQuestionAnswering` with hyper-connected layers."""


# The heads build their base model through AutoModel, also where this file was loaded from a shared folder.
AutoModel.register(HCLlamaConfig, HCLlamaModel, exist_ok=True)
