# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The operations of functional_hc with hand-written backward passes: same names, signatures, shapes and results.

For the backward pass they keep only what they were given: the streams, once for all three operations, and the block's
output. No normalised, scaled or mixed copy of the streams outlives the operation that needs it, and every product with
the streams is one matrix multiplication.

Shapes: `...` any leading axes, `N` streams, `D` hidden size, `C` projected columns.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from .functional_hc import full_precision, wide_dtype, widen


def projection(streams: Tensor, weight: Tensor, norm_weight: Tensor | None, eps: float, centered: bool) -> Tensor:
    """See `functional_hc.projection`."""
    weight = weight if norm_weight is None else weight * norm_weight
    return _Projection.apply(streams, weight.to(wide_dtype(streams)), eps, centered)


def width_connection(streams: Tensor, alpha: Tensor) -> Tensor:
    """See `functional_hc.width_connection`."""
    return _Width.apply(streams, alpha[..., 0].to(wide_dtype(streams)))


def depth_connection(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See `functional_hc.depth_connection`."""
    dtype = wide_dtype(streams)
    return _Depth.apply(streams, block_output, alpha[..., 1:].to(dtype), beta.to(dtype))


class _Projection(Function):
    """z = rstd * (u - mean * s), where u = H V^T, s = the row sums of V, V = norm_weight * W."""

    @staticmethod
    def forward(streams: Tensor, weight: Tensor, eps: float, centered: bool) -> Tensor:
        with full_precision(streams):
            streams = widen(streams)
            mean, rstd = _moments(streams, eps, centered)
            product = streams @ weight.mT
            return (product - mean * weight.sum(-1) if centered else product) * rstd

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        streams, weight, ctx.eps, ctx.centered = inputs
        ctx.save_for_backward(streams, weight, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        streams, weight, projected = ctx.saved_tensors
        dtype = streams.dtype
        with full_precision(streams):
            streams = widen(streams)
            mean, rstd = _moments(streams, ctx.eps, ctx.centered)
            grad_product = grad * rstd
            grad_streams = grad_product @ weight
            # d rstd / d h = -rstd^3 (h - mean) / D
            slope = (grad * projected).sum(-1, keepdim=True) * rstd.square() / -streams.shape[-1]
            grad_streams = grad_streams.addcmul_(streams, slope)
            grad_weight = grad_product.flatten(0, -2).mT @ streams.flatten(0, -2)
            if ctx.centered:
                grad_mean = (grad_product @ weight.sum(-1, keepdim=True)) / -streams.shape[-1]
                grad_streams = grad_streams.add_(grad_mean - mean * slope)
                grad_weight = grad_weight - (grad_product * mean).flatten(0, -2).sum(0).unsqueeze(-1)
            return grad_streams.to(dtype), grad_weight, None, None


class _Width(Function):
    """x = a^T H."""

    @staticmethod
    def forward(streams: Tensor, read: Tensor) -> Tensor:
        with full_precision(streams):
            return _row_times(read, widen(streams)).to(streams.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        streams, read = ctx.saved_tensors
        with full_precision(streams):
            grad = widen(grad)
            grad_streams = (read.unsqueeze(-1) * grad.unsqueeze(-2)).to(streams.dtype)
            grad_read = (widen(streams) @ grad.unsqueeze(-1)).squeeze(-1)
            return grad_streams, grad_read.sum_to_size(read.shape)


class _Depth(Function):
    """H_hat = A^T H + b y^T."""

    @staticmethod
    def forward(streams: Tensor, block_output: Tensor, carry: Tensor, beta: Tensor) -> Tensor:
        with full_precision(streams):
            carried = carry.mT @ widen(streams)
            return carried.addcmul_(beta.unsqueeze(-1), widen(block_output).unsqueeze(-2)).to(streams.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        streams, block_output, carry, beta = ctx.saved_tensors
        with full_precision(streams):
            grad = widen(grad)
            grad_streams = (carry @ grad).to(streams.dtype)
            grad_output = _row_times(beta, grad).to(block_output.dtype)
            grad_carry = widen(streams) @ grad.mT
            grad_beta = _row_times(widen(block_output), grad.mT)
            return grad_streams, grad_output, grad_carry.sum_to_size(carry.shape), grad_beta.sum_to_size(beta.shape)


def _moments(streams: Tensor, eps: float, centered: bool) -> tuple[Tensor | None, Tensor]:
    mean = streams.mean(-1, keepdim=True) if centered else None
    norm = torch.linalg.vector_norm(streams - mean if centered else streams, dim=-1, keepdim=True)
    return mean, torch.rsqrt(norm.square() / streams.shape[-1] + eps)


def _row_times(row: Tensor, matrix: Tensor) -> Tensor:
    """row^T @ matrix. A row cut out of a larger tensor is copied: batched products are slow on its strides."""
    return (row.contiguous().unsqueeze(-2) @ matrix).squeeze(-2)
