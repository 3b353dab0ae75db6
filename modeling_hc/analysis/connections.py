# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The unfolded connection matrix and what can be read from it: plain functions of the coefficients.

Hyper-connections are linear between the blocks, so what a block reads is a weighted sum of what the blocks before it
wrote. Multiplying the coefficients out gives the weights.

Shapes: `K` blocks, attention and MLP counted; `N` streams; `...` any leading axes, such as tokens. Layers are numbered
as in the paper: 0 is the embedding, 1..K are the blocks, K+1 is the output, the hidden state before the final norm.

Source: Section 4.5 and Appendix F of arXiv 2409.19606.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional_hc import widen

if TYPE_CHECKING:
    import pandas

GAIN_COLUMNS = ["forward", "backward", "composite_forward", "composite_backward"]
MEMORY_COLUMN = "composite_second"


def unfold(alpha: Tensor, beta: Tensor, closing: Tensor | str) -> tuple[Tensor, Tensor]:
    """Unfolds coefficients into connections between layers.

        C0[k, j] = B^j (prod_{t=j+1}^{k-1} A_r^t) A_m^k         what block k reads of layer j's output     Eq. 27
        Ci[k, j] = (B^j prod_{t=j+1}^{k} A_r^t)_i               what stream i holds of it after block k's carry,
                                                                before block k writes                      Eq. 29

    with B^0 = 1, since the embedding is written to every stream, and A_m^{K+1} the reduction of the streams.

    Args:
        alpha: `(A_m A_r)` of every block, `[..., K, N, 1+N]`.
        beta: B of every block, `[..., K, N]`.
        closing: the weights of the streams in the output, `[..., N]`; or "sum" or "mean".

    Returns:
        C0 `[..., K+2, K+2]` and C1..CN `[..., N, K+2, K+2]`, indexed `[reading layer, written layer]`, fp64, zero
        where j >= k. Row K+1 of Ci is what stream i holds at the end.
    """
    alpha, beta = alpha.double(), beta.double()
    *leading, num_blocks, num_streams = beta.shape
    layers = num_blocks + 2
    blocks = alpha.new_zeros(*leading, layers, layers)
    streams = alpha.new_zeros(*leading, num_streams, layers, layers)
    held = alpha.new_zeros(*leading, layers, num_streams)  # what each stream holds of each layer's output
    held[..., 0, :] = 1
    for k in range(1, num_blocks + 1):
        read, carry = alpha[..., k - 1, :, 0], alpha[..., k - 1, :, 1:]
        blocks[..., k, :] = (held @ read.unsqueeze(-1)).squeeze(-1)
        held = held @ carry
        streams[..., k, :] = held.mT
        held[..., k, :] = beta[..., k - 1, :]
    if isinstance(closing, str):
        closing = torch.full((num_streams,), 1 / num_streams if closing == "mean" else 1.0)
    blocks[..., -1, :] = (held @ closing.double().unsqueeze(-1)).squeeze(-1)
    streams[..., -1, :] = held.mT
    return blocks, streams


def shares(matrix: Tensor, output_rms: Tensor) -> Tensor:
    """Returns which part of what a block reads comes from which layer: weights times what was written.

    The norm with which a block begins ignores the scale of what it reads, so the rows of C0 may have any scale, and
    the layers write on scales of their own. Shares do not depend on either.

    Args:
        matrix: C0, or a stream's Ci, `[..., K+2, K+2]`.
        output_rms: the root mean square of what the layers 0..K wrote, `[..., K+1]`.

    Returns:
        `[..., K+2, K+2]`, with the signs of the weights; the absolute values in a row sum to 1.
    """
    amounts = matrix[..., :-1] * output_rms.unsqueeze(-2)
    total = amounts.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    return torch.nn.functional.pad(amounts / total, (0, 1))


def gains(alpha: Tensor) -> "pandas.DataFrame":
    """Returns `gain_values` as a table: a row for each block, from 1, and the columns `GAIN_COLUMNS`."""
    import pandas  # an extra, which the health of a training run does not need

    values = gain_values(alpha)
    return pandas.DataFrame(values, index=range(1, len(values) + 1), columns=GAIN_COLUMNS).rename_axis("block")


def gain_values(alpha: Tensor) -> Tensor:
    """Returns how much the carry can amplify: the Amax gain of single and of composite carry matrices.

    Forward is the largest absolute sum over the streams that flow into one, backward over those that one flows into;
    a signal, or a gradient, of bounded entries grows by at most that much.

    Args:
        alpha: `[K, N, 1+N]`, or per token `[T, K, N, 1+N]`: then gains are those of each token, averaged. The carry
            is its last N columns, also where it has N columns to read.

    Returns:
        `[K, 4]`, fp64: for each block k, forward and backward of A_r^k, then forward and backward of A_r^k ... A_r^K,
        all the way from block k to the output.

    Source: "Amax gain magnitude" of arXiv 2512.24880, whose H_res is A_r transposed.
    """
    rows = [[*_amax(carry), *_amax(composite)] for carry, composite in _composites(alpha)]
    return torch.tensor(rows[::-1], dtype=torch.float64)


def second_singular_values(alpha: Tensor) -> Tensor:
    """Returns what composite carries leave of the differences between the streams: their second singular value.

    A doubly stochastic carry keeps the mean of the streams (its first singular value is 1) and shrinks what sets them
    apart. Where the second is near 0, the streams of a block are the same sum by the time they reach the output.

    Args:
        alpha: see `gain_values`; N is at least 2.

    Returns:
        `[K]`, fp64: for each block k, of A_r^k ... A_r^K, all the way from block k to the output.
    """
    values = [torch.linalg.svdvals(composite)[:, 1].mean() for _, composite in _composites(alpha)]
    return torch.stack(values[::-1])


def _composites(alpha: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields A_r^k and A_r^k ... A_r^K, `[T, N, N]` each, from the last block to the first; see `gain_values`."""
    carry = alpha[..., -alpha.shape[-2] :].double()
    carry = carry.unsqueeze(0) if carry.dim() == 3 else carry
    composite = torch.eye(carry.shape[-1], dtype=torch.float64).expand_as(carry[:, 0])
    for single in reversed(carry.unbind(1)):
        composite = single @ composite
        yield single, composite


def effective_rank(streams: Tensor) -> Tensor:
    """Returns the effective rank of streams: 1 where they are multiples of each other, N where orthogonal and as long.

    It is exp of the entropy of the singular values divided by their sum.

    Args:
        streams: `[..., N, D]`.

    Returns:
        `[...]`.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    gram = widen(streams) @ widen(streams).mT
    squares = torch.linalg.eigvalsh(gram)
    noise = squares.shape[-1] * torch.finfo(squares.dtype).eps * squares.amax(-1, keepdim=True)
    values = squares.where(squares > noise, 0).sqrt()
    return torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1).exp()


def _amax(matrix: Tensor) -> list[float]:
    """Returns the forward and the backward gain of matrices `[T, N, N]`, averaged."""
    return [matrix.abs().sum(axis).amax(-1).mean().item() for axis in (-2, -1)]


def parallel_blocks(matrix: Tensor, threshold: float = 0.1) -> list[tuple[int, ...]]:
    """Finds neighbouring blocks that run in parallel: none of them reads what another has written.

    Args:
        matrix: C0, `[K+2, K+2]`.
        threshold: a weight counts as none below this part of the median weight that the block gives to layers.

    Returns:
        Groups of two or more block numbers, each group as large as it can be, in order.

    Source: Section 3.2.
    """
    weights = matrix.abs()
    groups: list[list[int]] = [[]]
    for k in range(1, len(matrix) - 1):
        if (weights[k, groups[-1]] >= threshold * weights[k, :k].quantile(0.5)).any():
            groups.append([])
        groups[-1].append(k)
    return [tuple(group) for group in groups if len(group) > 1]


def weight_by_distance(matrix: Tensor) -> "pandas.DataFrame":
    """Returns how strongly blocks read what was written a number of layers before: long-term decay, or none.

    Args:
        matrix: C0, or `shares` of it, `[K+2, K+2]`.

    Returns:
        A row for each distance k - j between two blocks, with the mean of absolute values over what `attention` has
        written (odd j) and over what an `mlp` has (even j). Embedding and output are left out.
    """
    between = matrix[1:-1, 1:-1].abs()
    rows = {}
    for distance in range(1, len(between)):
        weights = between.diagonal(-distance)
        rows[distance] = {"attention": weights[0::2].mean().item(), "mlp": weights[1::2].mean().item()}
    import pandas

    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("distance")


def cancellation(streams: Tensor) -> Tensor:
    """Returns how much of what the streams hold at the end cancels when they are summed.

    Args:
        streams: C1..CN, `[..., N, K+2, K+2]`.

    Returns:
        `[..., K+1]` for layers 0..K: 1 - |sum over i of Ci[K+1, j]| / sum over i of |Ci[K+1, j]|. 0 where the streams
        hold a layer's output with one sign, 1 where they hold it in pairs of opposite sign that cancel.

    Source: Appendix F (columns of C1 and C3 in pairs).
    """
    held = streams[..., -1, :-1]
    return 1 - held.sum(-2).abs() / held.abs().sum(-2).clamp_min(torch.finfo(held.dtype).tiny)
