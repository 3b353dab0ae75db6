# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""vLLM's Transformers backend, which hands a hidden state on between pipeline stages, made to hand the streams on."""

from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.transformers import TransformersForCausalLM, TransformersMoEForCausalLM
from vllm.model_executor.models.utils import make_empty_intermediate_tensors_factory
from vllm.sequence import IntermediateTensors


class _StreamsBetweenStages:
    """Streams `[T, N, D]` of T tokens travel as `[T, N*D]`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.streams_shape = self.config.num_streams, self.config.stream_size
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], self.config.num_streams * self.config.stream_size
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | IntermediateTensors:
        if intermediate_tensors is not None:
            streams = intermediate_tensors["hidden_states"].unflatten(-1, self.streams_shape)
            intermediate_tensors = IntermediateTensors({"hidden_states": streams.unsqueeze(0)})
        outputs = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        if isinstance(outputs, IntermediateTensors):
            return IntermediateTensors({"hidden_states": outputs["hidden_states"].flatten(-2)})
        return outputs


class HCForCausalLM(_StreamsBetweenStages, TransformersForCausalLM):
    """A hyper-connected causal model."""


class HCMoEForCausalLM(_StreamsBetweenStages, TransformersMoEForCausalLM):
    """A hyper-connected causal model with experts."""
