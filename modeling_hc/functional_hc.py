# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The mathematics of hyper-connections, in plain PyTorch, in the order of the paper.

Source: Zhu et al., "Hyper-Connections", ICLR 2025, arXiv 2409.19606; equation numbers refer to it.

Shapes: `...` any leading axes (batch, sequence), `N` residual streams, `D` hidden size. Along the `1+N` axis of
`alpha`, slot 0 is the block's input and slots 1..N are the carried streams; `alpha` is indexed `[..., from, to]`.

One block (attention or MLP, its pre-norm included) with hyper-connections is

    alpha, beta = coefficients(projection(streams, ...), ...)            how to read, carry and write     Eq. 10-13
    block_input = width_connection(streams, alpha)                       read                             Eq. 3
    streams     = depth_connection(streams, block(block_input), alpha, beta)      carry and write         Eq. 4, 5

The first two lines together are `dynamic_width_connection`.

Carrying waits until the block's output is there, so that the carried streams H' never exist beside the streams.

This file is the reference, and what torch.compile gets: it fuses products and sums over the few streams into one pass,
which batched matrix products would cut into several. Eagerly it is slow and large; autograd_hc computes the same with
less memory and time, and dispatch_hc chooses.

Coefficients are fp32 (fp64 for fp64 streams) whatever the dtype of the streams and with autocast on or off: in
bf16 a coefficient near 1 cannot move by less than 0.4 %. Each result is rounded once, to the dtype of the streams.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def open_streams(hidden_states: Tensor, num_streams: int) -> Tensor:
    """Replicates the embedding into every stream: H^0 = (h^0 ... h^0)^T.

    Args:
        hidden_states: `[..., D]`.
        num_streams: N, at least 1.

    Returns:
        `[..., N, D]`, contiguous.

    Source: Section 2.1.
    """
    return hidden_states.unsqueeze(-2).expand(*hidden_states.shape[:-1], num_streams, -1).contiguous()


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
    with full_precision(streams):
        streams = widen(streams)
        weight = (weight if norm_weight is None else weight * norm_weight).to(streams.dtype)
        product = streams @ weight.transpose(-2, -1)  # .mT would be the same, and OpenVINO's tracer does not know it
        if not centered:
            return product * torch.rsqrt(streams.square().mean(-1, keepdim=True) + eps)
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
    bounded = torch.tanh(projected) if use_tanh else projected
    alpha = bounded[..., :-1] * alpha_scale + alpha_bias
    beta = bounded[..., -1] * beta_scale + beta_bias
    return alpha, beta


def width_connection(streams: Tensor, alpha: Tensor) -> Tensor:
    """Reads the block's input from the streams: h_0 = A_m^T H.

    Args:
        streams: H, `[..., N, D]`.
        alpha: `(A_m A_r)`, `[N, 1+N]` (static) or `[..., N, 1+N]` (dynamic); of fractions `[..., N, N+N]`.

    Returns:
        `[..., D]`, in the streams' dtype; of fractions `[..., N*D]`, one sum after the other.

    Source: Eq. 3, 7.
    """
    with full_precision(streams):
        wide = widen(streams)
        if (slots := read_slots(alpha)) > 1:
            return _mixed(wide, alpha[..., :slots]).flatten(-2).to(streams.dtype)
        read = alpha[..., 0].to(wide.dtype).unsqueeze(-1)
        return (read * wide).sum(-2).to(streams.dtype)


def dynamic_width_connection(
    streams: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    alpha_scale: Tensor,
    beta_scale: Tensor,
    alpha_bias: Tensor,
    beta_bias: Tensor,
    use_tanh: bool,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the coefficients from the streams and reads the block's input with them.

    Args:
        streams: H, `[..., N, D]`.
        weight, norm_weight, eps, centered: see `projection`.
        alpha_scale, beta_scale, alpha_bias, beta_bias, use_tanh: see `coefficients`.

    Returns:
        The block's input `[..., D]`, in the streams' dtype; alpha `[..., N, 1+N]` and beta `[..., N]`, fp32 or wider.

    Source: Eq. 3, 8-13.
    """
    projected = projection(streams, weight, norm_weight, eps, centered)
    alpha, beta = coefficients(projected, alpha_scale, beta_scale, alpha_bias, beta_bias, use_tanh)
    return width_connection(streams, alpha), alpha, beta


def depth_connection(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Carries the streams on and writes the block's output to each: H_hat = A_r^T H + B^T T(h_0)^T.

        H_hat[to] = (sum over from of A_r[from, to] * H[from]) + B[to] * block_output

    Args:
        streams: H, `[..., N, D]`, as they were read.
        block_output: T(h_0), `[..., D]`; of fractions `[..., N*D]`, of which each gets its own part.
        alpha: `(A_m A_r)`, `[N, 1+N]` or `[..., N, 1+N]`; of fractions `[..., N, N+N]`.
        beta: B, `[N]` or `[..., N]`.

    Returns:
        H_hat, `[..., N, D]`, in the streams' dtype.

    Source: Eq. 4, 5.
    """
    with full_precision(streams):
        wide = widen(streams)
        slots = read_slots(alpha)
        parts = block_output.unflatten(-1, (slots, -1)) if slots > 1 else block_output.unsqueeze(-2)
        written = beta.to(wide.dtype).unsqueeze(-1) * parts
        return (_mixed(wide, alpha[..., slots:]) + written).to(streams.dtype)


def _mixed(wide: Tensor, weights: Tensor) -> Tensor:
    return (weights.to(wide.dtype).unsqueeze(-1) * wide.unsqueeze(-2)).sum(-3)


def joint_projection(streams: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Projects all streams of a token together: z = W vec(H) / rms(vec(H)).

    Args:
        streams: H, `[..., N, D]`; vec(H) has stream after stream.
        weight: W, `[C, N*D]`.
        eps: added to the mean square of vec(H).

    Returns:
        `[..., C]`, fp32 or wider.

    Source: Eq. 5, 6 of arXiv 2512.24880.
    """
    return projection(streams.flatten(-2), weight, None, eps, False)


def sinkhorn(logits: Tensor, iterations: int, hc_eps: float) -> Tensor:
    """Makes matrices doubly stochastic: exp, then sums over `to` and sums over `from` are divided out in turn.

    What flows into a stream comes last and sums to 1, up to hc_eps; what flows out of one does so up to convergence.

    Args:
        logits: `[..., N*N]`, of matrices indexed [from, to].
        iterations: pairs of divisions, at least 1.
        hc_eps: added to each matrix element once, and to every sum that is divided by.

    Returns:
        `[..., N, N]`, indexed [from, to].

    Source: Eq. 8, 9 of arXiv 2512.24880, where H_res is this matrix transposed.
    """
    size = math.isqrt(logits.shape[-1])
    matrix = logits.unflatten(-1, (size, size)).softmax(-1) + hc_eps
    matrix = matrix / (matrix.sum(-2, keepdim=True) + hc_eps)
    for _ in range(iterations - 1):
        matrix = matrix / (matrix.sum(-1, keepdim=True) + hc_eps)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + hc_eps)
    return matrix


def read_slots(alpha: Tensor) -> int:
    """Returns how many of alpha's columns are read: one, or N where the streams are fractions of a hidden state."""
    num_streams = alpha.shape[-2]
    return num_streams if alpha.shape[-1] == 2 * num_streams else 1


def wide_dtype(streams: Tensor) -> torch.dtype:
    """Returns the dtype in which coefficients meet the streams: fp32, or the streams' own where that is wider."""
    return torch.promote_types(streams.dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """Returns the tensor in fp32, or as it is where it is wider."""
    return tensor.to(wide_dtype(tensor))


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Returns a context in which autocast does not lower the precision of matrix products."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
