# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The mathematics of hyper-connections, in plain PyTorch, in the order of the paper.

Source: Zhu et al., "Hyper-Connections", ICLR 2025, arXiv 2409.19606; equation numbers refer to it.

Shapes: `...` any leading axes (batch, sequence), `N` residual streams, `D` hidden size. Along the `1+N` axis of
`alpha`, slot 0 is the block's input and slots 1..N are the carried streams; `alpha` is indexed `[..., from, to]`.

One block (attention or MLP, its pre-norm included) with hyper-connections is

    alpha, beta          = coefficients(projection(streams))      how to read, carry and write      Eq. 10-13
    block_input, carried = width_connection(streams, alpha)       read and carry                    Eq. 3, 4
    streams              = depth_connection(block(block_input), carried, beta)      write           Eq. 5

Coefficients are fp32 (fp64 for fp64 streams) whatever the dtype of the streams and with autocast on or off: in
bf16 a coefficient near 1 cannot move by less than 0.4 %. Each result is rounded once, to the dtype of the streams.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def open_streams(hidden_states: Tensor, num_streams: int) -> Tensor:
    """Replicates the embedding into every stream: H^0 = (h^0 ... h^0)^T.

    Args:
        hidden_states: `[..., D]`.
        num_streams: N, at least 1.

    Returns:
        `[..., N, D]`, a view without a copy.

    Source: Section 2.1.
    """
    return hidden_states.unsqueeze(-2).expand(*hidden_states.shape[:-1], num_streams, -1)


def close_streams(streams: Tensor, reduction: str) -> Tensor:
    """Reduces the streams to one hidden state, which the model's final norm reads.

    Args:
        streams: `[..., N, D]`.
        reduction: "sum", the paper's; or "mean", which equals the residual network's hidden state while all streams
            are equal.

    Returns:
        `[..., D]`, in the streams' dtype.

    Source: Algorithm 1 (sum).
    """
    return streams.sum(-2) if reduction == "sum" else streams.mean(-2)


def projection(streams: Tensor, weight: Tensor, norm_weight: Tensor | None, eps: float, centered: bool) -> Tensor:
    """Projects each normalised stream, without ever forming the normalised streams.

        norm(h) = (h - mean(h)) * rstd(h) * norm_weight           (without the mean where `centered` is False)
        norm(h) @ W^T = rstd(h) * (h @ V^T - mean(h) * sum(V)),   V = norm_weight * W

    Args:
        streams: H, `[..., N, D]`.
        weight: W, `[C, D]`; the C rows are the columns of W_m, W_r and W_beta.
        norm_weight: `[D]`, or None for a norm without parameters.
        eps: added to the mean square (or the variance) of a stream.
        centered: True for LayerNorm, False for RMSNorm.

    Returns:
        `[..., N, C]`, fp32 or wider. A stream's row depends on that stream only.

    Source: Eq. 10 and the products in Eq. 11-13.
    """
    with _full_precision(streams):
        streams, weight = _promote(streams, weight)
        if norm_weight is not None:
            weight = weight * norm_weight.to(weight.dtype)
        product = streams @ weight.mT
        if not centered:
            mean_square = torch.linalg.vector_norm(streams, dim=-1, keepdim=True).square() / streams.shape[-1]
            return product * torch.rsqrt(mean_square + eps)
        variance, mean = torch.var_mean(streams, dim=-1, correction=0, keepdim=True)
        return (product - mean * weight.sum(-1)) * torch.rsqrt(variance + eps)


def coefficients(
    projected: Tensor,
    alpha_scale: Tensor,
    beta_scale: Tensor,
    alpha_bias: Tensor,
    beta_bias: Tensor,
    use_tanh: bool = True,
) -> tuple[Tensor, Tensor]:
    """Dynamic coefficients: a static part plus a gated, bounded function of each stream.

        alpha = alpha_bias + alpha_scale * tanh(norm(H) @ (W_m, W_r))
        beta  = beta_bias  + beta_scale  * tanh(norm(H) @ W_beta)

    Args:
        projected: `[..., N, 1+N+1]` from `projection`: read, carry, and last the write column.
        alpha_scale: scalar s_alpha, shared by read and carry.
        beta_scale: scalar s_beta.
        alpha_bias: `[N, 1+N]`, the static A_m and A_r.
        beta_bias: `[N]`, the static B.
        use_tanh: False gives the paper's "W/O tanh" variant.

    Returns:
        alpha `[..., N, 1+N]` and beta `[..., N]`, in the dtype of `projected`.

    Source: Eq. 11-13, Algorithm 2.
    """
    with _full_precision(projected):
        bounded = torch.tanh(projected) if use_tanh else projected
        alpha = bounded[..., :-1] * alpha_scale + alpha_bias
        beta = bounded[..., -1] * beta_scale + beta_bias
        return alpha.to(projected.dtype), beta.to(projected.dtype)


def width_connection(streams: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Reads the block's input from the streams and mixes the streams among themselves.

        block_input = A_m^T H          carried[to] = sum over from of A_r[from, to] * H[from]

    The two are computed apart, so that keeping one for the backward pass does not keep the other.

    Args:
        streams: H, `[..., N, D]`.
        alpha: `(A_m A_r)`, `[N, 1+N]` (static) or `[..., N, 1+N]` (dynamic).

    Returns:
        block_input `[..., D]` and carried `[..., N, D]`, in the streams' dtype.

    Source: Eq. 3, 4, 7.
    """
    with _full_precision(streams):
        wide, alpha = _promote(streams, alpha)
        block_input = (alpha[..., None, :, 0] @ wide).squeeze(-2)
        carried = alpha[..., 1:].mT @ wide
        return block_input.to(streams.dtype), carried.to(streams.dtype)


def depth_connection(block_output: Tensor, carried: Tensor, beta: Tensor) -> Tensor:
    """Writes the block's output back to every stream: H_hat[j] = beta[j] * block_output + carried[j].

    Args:
        block_output: T(h_0), `[..., D]`.
        carried: H', `[..., N, D]`.
        beta: B, `[N]` (static) or `[..., N]` (dynamic).

    Returns:
        The new streams, `[..., N, D]`, in the dtype of `carried`.

    Source: Eq. 5.
    """
    return (carried + beta[..., None] * block_output[..., None, :]).to(carried.dtype)


def _promote(streams: Tensor, coefficient: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(streams.dtype, torch.float32)
    return streams.to(dtype), coefficient.to(dtype)


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
