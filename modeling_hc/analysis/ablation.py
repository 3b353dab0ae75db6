# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Ablate and rescue: what a stream is worth at some depth, and whether giving it back later helps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Literal

import pandas
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .recording import connections, hooked, require_streams


@torch.no_grad()
def ablate_and_rescue(
    model: PreTrainedModel,
    windows: Iterable[Tensor],
    blocks: Iterable[int] | None = None,
    rescue_after: int = 2,
    ablation: Literal["zero", "mean"] = "zero",
) -> pandas.DataFrame:
    """Takes each stream away at a depth and measures the loss; then again, giving it back some blocks later.

    Taken away, the stream that block k is about to read is replaced, for this block and what follows, by zero or by
    its mean over the tokens of the window. Given back, it gets the value that it has in the untouched model; what
    other streams and blocks made of its absence in between stays.

    Args:
        model: a hyper-connected causal language model.
        windows: token ids, each `[B, S]`, S at least 2.
        blocks: numbers, from 1, of the blocks before which to take a stream away; by default all.
        rescue_after: after how many blocks to give it back, at least 1.
        ablation: what takes its place.

    Returns:
        A row for each block and stream, both from 1, with the losses `untouched`, `ablated` and `rescued` in nats per
        token. `rescued` is NaN where there is no block left before which to give the stream back.

    Raises:
        ValueError: a residual model, one that is no causal language model, or a block number that it does not have.

    Source: "Ablate and Rescue", arXiv 2603.14833.
    """
    require_streams(model, "Ablation of streams")
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} is no language model with a head, and the loss is that of the next token. Give "
            "a causal language model; `measure` and `describe` also read others."
        )
    sites = connections(model)
    wanted = list(range(1, len(sites) + 1) if blocks is None else blocks)
    if wrong := [k for k in wanted if not 1 <= k <= len(sites)]:
        raise ValueError(f"blocks has {wrong[0]}, and {type(model).__name__} has the blocks 1 to {len(sites)}.")
    if rescue_after < 1:
        raise ValueError(f"rescue_after={rescue_after} is before the stream was taken away; give 1 or more.")
    sums: defaultdict[tuple[int, int, str], float] = defaultdict(float)
    tokens = 0
    for window in windows:
        clean: list[Tensor] = []
        untouched = _loss(model, window, {site: partial(_noted, where=clean) for site in sites})
        tokens += window.numel()
        for k, stream in product(wanted, range(model.config.num_streams)):
            changes: dict[nn.Module, Callable] = {sites[k - 1]: partial(_ablated, stream=stream, ablation=ablation)}
            losses = {"untouched": untouched, "ablated": _loss(model, window, changes)}
            if k + rescue_after <= len(sites):
                back = k + rescue_after - 1
                changes[sites[back]] = partial(_replaced, stream=stream, value=clean[back][..., stream, :])
                losses["rescued"] = _loss(model, window, changes)
            for name, loss in losses.items():
                sums[k, stream + 1, name] += loss * window.numel()
    if not tokens:
        raise ValueError("windows is empty: give at least one window of token ids.")
    frame = (pandas.Series(sums) / tokens).unstack().rename_axis(["block", "stream"])
    return frame.reindex(columns=["untouched", "ablated", "rescued"])


def _loss(model: PreTrainedModel, window: Tensor, changes: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> float:
    """Returns the loss with the input streams of some hyper-connections replaced."""

    def meets(change: Callable[[Tensor], Tensor]) -> Callable:
        return lambda module, args, output: module.forward(change(output[0]))

    with hooked((site, meets(change)) for site, change in changes.items()):
        window = window.to(model.device)
        return model(input_ids=window, labels=window, use_cache=False).loss.item()


def _noted(streams: Tensor, where: list[Tensor]) -> Tensor:
    where.append(streams.clone())
    return streams


def _ablated(streams: Tensor, stream: int, ablation: str) -> Tensor:
    value = streams[..., stream, :]
    return _replaced(streams, stream, value.mean((0, 1)) if ablation == "mean" else torch.zeros_like(value))


def _replaced(streams: Tensor, stream: int, value: Tensor) -> Tensor:
    streams = streams.clone()
    streams[..., stream, :] = value
    return streams
