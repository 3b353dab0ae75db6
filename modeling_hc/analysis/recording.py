# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Runs a model and records, with hooks, what its hyper-connections did.

A residual model is a hyper-connected one with a single stream whose coefficients are all 1 (Eq. 15 of arXiv
2409.19606), and is recorded as such: whatever is measured on the one can be measured on the other, where it has
meaning.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..configuration_hc import families
from ..hyper_connections import HyperConnection
from .connections import unfold


@dataclass
class Recording:
    """What a model did on some text, on the CPU, in the model's dtypes. Index 0 of K is block 1.

    Of images, S counts the tokens of one: its class, then its patches, row by row.

    Attributes:
        streams: H, what each block reads from, `[K, B, S, N, D]`.
        block_inputs: what it reads, before its norm, `[K, B, S, D]`.
        alpha: `(A_m A_r)`, `[K, B, S, N, 1+N]`.
        beta: B, `[K, B, S, N]`.
        outputs: what the layers 0..K wrote, layer 0 being the embedding as the first block gets it, `[K+1, B, S, D]`.
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
def record(model: PreTrainedModel, inputs: Tensor) -> Recording:
    """Runs a model over text, or images, and records every block.

    It takes the memory of 2 + N hidden states for each block and token: record a long text window by window, as
    `measure` does.

    Args:
        model: hyper-connected, or the residual parent of a hyper-connected family, with or without its head.
        inputs: token ids `[B, S]`, without padding, or pixels `[B, C, H, W]`.

    Raises:
        ValueError: the model is neither.
    """
    hyper_connected = is_hyper_connected(model)
    decoder = model.base_model
    final_norm = getattr(decoder, _decoder_class(model).final_norm)
    blocks: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []
    final: list[Tensor] = []

    def keep_connection(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        streams, block_input, alpha, beta = output
        tokens = block_input.shape[:-1]
        blocks.append(
            _keep(streams, block_input, alpha.expand(*tokens, *alpha.shape[-2:]), beta.expand(*tokens, beta.shape[-1]))
        )

    def keep_block(block_input: Tensor, output: Tensor) -> None:
        if not hyper_connected:
            ones = block_input.new_ones(*block_input.shape[:-1], 1)
            alpha = ones.unsqueeze(-1).expand(*ones.shape, 2)
            blocks.append(_keep(block_input.unsqueeze(-2), block_input, alpha, ones))
        outputs.extend(_keep(output))

    def keep_final(module: Any, args: tuple[Tensor, ...]) -> None:
        if hyper_connected:
            final.extend(_keep(module.close(args[0]), module.closing_weights(args[0])))
        else:
            final.extend(_keep(args[0], args[0].new_ones(*args[0].shape[:-1], 1)))

    after = [(connection, keep_connection) for connection in connections(model)] if hyper_connected else []
    before = [(decoder.layers[0], lambda module, args: outputs.extend(_keep(args[0]))), (final_norm, keep_final)]
    with hooked(after, before), watched_blocks(model, keep_block):
        decoder(**model_inputs(model, inputs))
    streams, block_inputs, alpha, beta = map(torch.stack, zip(*blocks, strict=True))
    return Recording(streams, block_inputs, alpha, beta, torch.stack(outputs), *final)


def model_inputs(model: PreTrainedModel, inputs: Tensor) -> dict[str, Any]:
    """Returns the arguments of a forward over token ids or pixels."""
    options = {"use_cache": False} if model.main_input_name == "input_ids" else {}
    return {model.main_input_name: inputs.to(next(model.parameters()).device)} | options


@contextmanager
def watched_blocks(model: PreTrainedModel, note: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Within it, every block calls `note` with what it read and with what it adds to the streams, `[B, S, D]` each.

    A block is what its family says it is (`HCDecoderLayerMixin.blocks`), with all norms, scales and dropouts, also in
    the residual parent.
    """
    hyper_connected = is_hyper_connected(model)
    undo = []

    def put(layer: nn.Module, name: str, value: Callable) -> None:
        undo.append((vars(layer), name, vars(layer).get(name)))
        vars(layer)[name] = value

    for layer in model.base_model.layers:
        hc_layer = layer if hyper_connected else _as_hyper_connected(layer, model)
        blocks = [_watched(getattr(hc_layer, block), note) for block in hc_layer.blocks.values()]
        if hyper_connected:
            for name, block in zip(hc_layer.blocks.values(), blocks, strict=True):
                put(layer, name, block)
        else:  # accelerate has put a function of its own in the place of `forward`
            put(layer, "_old_forward" if hasattr(layer, "_old_forward") else "forward", partial(_residual, blocks))
    try:
        yield
    finally:
        for attributes, name, value in undo:
            del attributes[name]
            if value is not None:
                attributes[name] = value


def _watched(block: Callable[..., Tensor], note: Callable[[Tensor, Tensor], None]) -> Callable[..., Tensor]:
    @wraps(block)
    def run(block_input: Tensor, **kwargs: Any) -> Tensor:
        output = block(block_input, **kwargs)
        note(block_input, output)
        return output

    return run


def _residual(
    blocks: list[Callable[..., Tensor]], hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    for block in blocks:
        hidden_states = hidden_states + block(hidden_states, attention_mask=attention_mask, **kwargs)
    return hidden_states


def _as_hyper_connected(layer: nn.Module, model: PreTrainedModel) -> Any:
    """Returns a residual layer as its family's class sees it: the same modules, with the methods of the blocks."""
    hc_class = next(part for part in _decoder_class(model).parts.values() if hasattr(part, "blocks"))
    view = hc_class.__new__(hc_class)
    view.__dict__ = layer.__dict__
    return view


def _decoder_class(model: PreTrainedModel) -> Any:
    if is_hyper_connected(model):
        return model.base_model
    return AutoModel._model_mapping[families()[model.config.model_type]]


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
    if layers and all(hasattr(layer, name) for layer in layers for name in getattr(layer, "blocks", ["none"])):
        return True
    model_type = getattr(model.config, "model_type", None)
    if layers and model_type in families():
        return False
    raise ValueError(
        f"{type(model).__name__} (model_type={model_type!r}) cannot be analyzed: give a model of this package, or a "
        f"residual one of {', '.join(families())}. Adapters of peft come first into the model with merge_and_unload()."
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
    return [getattr(layer, connection) for layer in model.base_model.layers for connection in layer.blocks]


def patch_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Returns how many rows and columns of patches an image has."""
    sizes = config.image_size, config.patch_size
    (height, width), (high, wide) = ((size, size) if isinstance(size, int) else size for size in sizes)
    return height // high, width // wide


def block_kinds(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns what the blocks of a layer are: "attention" and "MLP", or "parallel", both in one."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's
    layer = model.base_model.layers[0]
    blocks = (layer if is_hyper_connected(model) else _as_hyper_connected(layer, model)).blocks
    return ("attention", "MLP") if len(blocks) == 2 else ("parallel",)


def block_names(num_blocks: int, kinds: tuple[str, ...] = ("attention", "MLP")) -> list[str]:
    """Returns what layers 0..K+1 are called: "embedding", "1 attention", "2 MLP", ..., "output"."""
    return ["embedding", *(f"{k + 1} {kinds[k % len(kinds)]}" for k in range(num_blocks)), "output"]
