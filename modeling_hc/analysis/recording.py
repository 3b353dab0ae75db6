# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Runs a model and records, with hooks, what its hyper-connections did.

A residual model is a hyper-connected one with a single stream whose coefficients are all 1 (Eq. 15 of arXiv
2409.19606), and is recorded as such: whatever is measured on the one can be measured on the other, where it has
meaning.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from ..hyper_connections import HyperConnection
from .connections import unfold

_PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


@dataclass
class Recording:
    """What a model did on some text, on the CPU, in the model's dtypes. Index 0 of K is block 1.

    Attributes:
        streams: H, what each block reads from, `[K, B, S, N, D]`.
        block_inputs: what it reads, before its norm, `[K, B, S, D]`.
        alpha: `(A_m A_r)`, `[K, B, S, N, 1+N]`.
        beta: B, `[K, B, S, N]`.
        outputs: what the layers 0..K wrote, layer 0 being the embedding, `[K+1, B, S, D]`.
        final: the hidden state before the model's last norm, `[B, S, D]`.
        closing: the weight of each stream in it, `[B, S, N]`.
    """

    streams: Tensor
    block_inputs: Tensor
    alpha: Tensor
    beta: Tensor
    outputs: Tensor
    final: Tensor
    closing: Tensor

    def unfold(self) -> tuple[Tensor, Tensor]:
        """Returns every token's connection matrices: `connections.unfold` with the leading axes `B, S`."""
        return unfold(self.alpha.movedim(0, 2), self.beta.movedim(0, 2), self.closing)


@torch.no_grad()
def record(model: PreTrainedModel, input_ids: Tensor) -> Recording:
    """Runs a model over text and records every block.

    It takes the memory of 2 + N hidden states for each block and token: record a long text window by window, as
    `measure` does.

    Args:
        model: hyper-connected, or the residual parent of a hyper-connected family, with or without its head.
        input_ids: `[B, S]`, without padding.

    Raises:
        ValueError: the model is neither.
    """
    hyper_connected = is_hyper_connected(model)
    decoder = model.base_model
    blocks: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []
    final: list[Tensor] = []

    def keep_connection(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        streams, block_input, alpha, beta = output
        tokens = block_input.shape[:-1]
        blocks.append(
            _keep(streams, block_input, alpha.expand(*tokens, *alpha.shape[-2:]), beta.expand(*tokens, beta.shape[-1]))
        )

    def keep_residual(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        ones = args[0].new_ones(*args[0].shape[:-1], 1)
        blocks.append(_keep(args[0].unsqueeze(-2), args[0], ones.unsqueeze(-1).expand(*ones.shape, 2), ones))

    def keep_output(module: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.extend(_keep(output[0] if isinstance(output, tuple) else output))

    def keep_final(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if hyper_connected:
            final.extend(_keep(module.close(args[0]), module.closing_weights(args[0])))
        else:
            final.extend(_keep(args[0], args[0].new_ones(*args[0].shape[:-1], 1)))

    after: list[tuple[nn.Module, Callable]] = [(decoder.embed_tokens, keep_output)]
    before: list[tuple[nn.Module, Callable]] = [(decoder.norm, keep_final)]
    for layer in decoder.layers:
        after += [(layer.self_attn, keep_output), (layer.mlp, keep_output)]
        if hyper_connected:
            after += [(layer.attn_hc, keep_connection), (layer.mlp_hc, keep_connection)]
        else:
            before += [(layer.input_layernorm, keep_residual), (layer.post_attention_layernorm, keep_residual)]
    with hooked(after, before):
        decoder(input_ids=input_ids.to(decoder.embed_tokens.weight.device), use_cache=False)
    streams, block_inputs, alpha, beta = map(torch.stack, zip(*blocks, strict=True))
    return Recording(streams, block_inputs, alpha, beta, torch.stack(outputs), *final)


@contextmanager
def hooked(
    after: Iterable[tuple[nn.Module, Callable]], before: Iterable[tuple[nn.Module, Callable]] = ()
) -> Iterator[None]:
    """Hooks modules, after and before their forward, and takes the hooks off again whatever happens."""
    handles = [module.register_forward_hook(hook) for module, hook in after]
    handles += [module.register_forward_pre_hook(hook) for module, hook in before]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies, because a model may go on to write into its own tensors."""
    return tuple(tensor.detach().to("cpu", copy=True) for tensor in tensors)


def is_hyper_connected(model: PreTrainedModel) -> bool:
    """Returns whether a model is hyper-connected (True) or the residual parent of a family that can be (False).

    Raises:
        ValueError: it is neither.
    """
    layers = getattr(model.base_model, "layers", None)
    if layers and all(hasattr(layer, name) for layer in layers for name in ("attn_hc", "mlp_hc", *_PARTS)):
        return True
    model_type = getattr(model.config, "model_type", None)
    if layers and f"hc_{model_type}" in CONFIG_MAPPING and all(hasattr(layers[0], name) for name in _PARTS):
        return False
    families = [name.removeprefix("hc_") for name in CONFIG_MAPPING if name.startswith("hc_")]
    raise ValueError(
        f"{type(model).__name__} (model_type={model_type!r}) cannot be analyzed: give a model of this package, or a "
        f"residual one of {', '.join(families)}. Adapters of peft come first into the model with merge_and_unload()."
    )


def require_streams(model: PreTrainedModel, purpose: str) -> None:
    """Rejects a model without streams.

    Raises:
        ValueError: the model is residual, or none that can be analyzed.
    """
    if not is_hyper_connected(model):
        raise ValueError(
            f"{purpose} needs residual streams, and {type(model).__name__} is a residual model, which has none. Give "
            "the HC model that `modeling-hc convert` or `modeling-hc train` makes of it."
        )


def connections(model: PreTrainedModel) -> list[HyperConnection]:
    """Returns the hyper-connections of a model in the order of its blocks."""
    return [connection for layer in model.base_model.layers for connection in (layer.attn_hc, layer.mlp_hc)]


def block_names(num_blocks: int) -> list[str]:
    """Returns what layers 0..K+1 are called: "embedding", "1 attention", "2 MLP", ..., "output"."""
    kinds = [f"{k} {'attention' if k % 2 else 'MLP'}" for k in range(1, num_blocks + 1)]
    return ["embedding", *kinds, "output"]
