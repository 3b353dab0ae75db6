# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The operations of functional_hc with hand-written backward passes: same names, signatures, shapes and results.

For the backward pass they keep the streams, once for both operations, the block's output and the coefficients. No
normalised, scaled or mixed copy of the streams outlives the operation that needs it, and each backward pass allocates
one tensor as large as the streams.

Shapes: `...` any leading axes, `N` streams, `D` hidden size. `mix` is `[..., N, 1+N+1]`: read, carry and write, in the
columns of the projection.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from .functional_hc import full_precision, wide_dtype, widen


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
    """See `functional_hc.dynamic_width_connection`."""
    dtype = wide_dtype(streams)
    weight = weight if norm_weight is None else weight * norm_weight
    scale = torch.cat([alpha_scale.expand(alpha_bias.shape[-1]), beta_scale])
    bias = torch.cat([alpha_bias, beta_bias.unsqueeze(-1)], dim=-1)
    parameters = (weight.to(dtype), scale.to(dtype), bias.to(dtype))
    return _call(_DynamicWidth, streams, *parameters, use_tanh, eps, centered)[:3]


def width_connection(streams: Tensor, alpha: Tensor) -> Tensor:
    """See `functional_hc.width_connection`."""
    return _call(_Width, streams, alpha.to(wide_dtype(streams)))


def depth_connection(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See `functional_hc.depth_connection`."""
    dtype = wide_dtype(streams)
    return _call(_Depth, streams, block_output, alpha.to(dtype), beta.to(dtype))


def joint_projection(streams: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `functional_hc.joint_projection`."""
    return _call(_JointProjection, streams, weight.to(wide_dtype(streams)), eps)[0]


def sinkhorn(logits: Tensor, iterations: int, hc_eps: float) -> Tensor:
    """See `functional_hc.sinkhorn`."""
    return _call(_Sinkhorn, logits, iterations, hc_eps)


class _DynamicWidth(Function):
    """z = rstd * (H V^T - mean * s), mix = bias + scale * tanh(z), x = read^T H, where s are the row sums of V.

    Returns x, alpha and beta, and for the backward pass z, rstd and mean.
    """

    @staticmethod
    def forward(
        streams: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, use_tanh: bool, eps: float, centered: bool
    ) -> tuple[Tensor | None, ...]:
        with full_precision(streams):
            wide = widen(streams)
            projected, rstd, mean = _project(wide, weight, eps, centered)
            mix = torch.addcmul(bias, torch.tanh(projected) if use_tanh else projected, scale)
            block_input = _weighted_sum(mix[..., 0], wide).to(streams.dtype)
            return block_input, mix[..., :-1], mix[..., -1], projected, rstd, mean

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        streams, weight, scale, _, ctx.use_tanh, ctx.eps, ctx.centered = inputs
        _, alpha, _, *projection = output
        ctx.mark_non_differentiable(*(tensor for tensor in projection if tensor is not None))
        ctx.save_for_backward(streams, weight, scale, alpha, *projection)

    @staticmethod
    def backward(
        ctx, grad_input: Tensor, grad_alpha: Tensor, grad_beta: Tensor, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        streams, weight, scale, alpha, *projection = ctx.saved_tensors
        with full_precision(streams):
            wide, grad_input = widen(streams), widen(grad_input)
            if torch.is_grad_enabled():  # of the backward pass itself
                projection = _project(wide, weight, ctx.eps, ctx.centered)
            projected, rstd, mean = projection
            bounded = torch.tanh(projected) if ctx.use_tanh else projected
            grad_read = grad_alpha[..., 0] + (grad_input.unsqueeze(-2) @ wide.mT).squeeze(-2)
            grad_mix = torch.cat([grad_read.unsqueeze(-1), grad_alpha[..., 1:], grad_beta.unsqueeze(-1)], dim=-1)
            grad = grad_mix * scale * (1 - bounded.square()) if ctx.use_tanh else grad_mix * scale
            # d rstd / d h = -rstd^3 (h - mean) / D
            slope = (grad * projected).sum(-1, keepdim=True) * rstd.square() / -wide.shape[-1]
            grad = grad * rstd
            grad_streams = grad @ weight
            grad_streams.addcmul_(alpha[..., :1], grad_input.unsqueeze(-2)).addcmul_(wide, slope)
            grad_weight = grad.flatten(0, -2).mT @ wide.flatten(0, -2)
            if ctx.centered:
                grad_mean = (grad @ weight.sum(-1, keepdim=True)) / -wide.shape[-1]
                grad_streams.add_(grad_mean - mean * slope)
                grad_weight = grad_weight - (grad * mean).flatten(0, -2).sum(0).unsqueeze(-1)
            grad_scale = (grad_mix * bounded).flatten(0, -2).sum(0)
            grad_bias = grad_mix.flatten(0, -3).sum(0)
            return grad_streams.to(streams.dtype), grad_weight, grad_scale, grad_bias, None, None, None


class _JointProjection(Function):
    """z = rstd * (W u) with u = vec(H). Returns z, and for the backward pass rstd."""

    @staticmethod
    def forward(streams: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        with full_precision(streams):
            return _project(widen(streams).flatten(-2), weight, eps, centered=False)[:2]

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        streams, weight, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(streams, weight, *output)

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        streams, weight, projected, rstd = ctx.saved_tensors
        with full_precision(streams):
            joint = widen(streams).flatten(-2)
            if torch.is_grad_enabled():  # of the backward pass itself
                projected, rstd = _project(joint, weight, ctx.eps, centered=False)[:2]
            # d rstd / d u = -rstd^3 u / (N D)
            slope = (grad * projected).sum(-1, keepdim=True) * rstd.square() / -joint.shape[-1]
            grad = grad * rstd
            grad_streams = (grad @ weight).addcmul_(joint, slope).unflatten(-1, streams.shape[-2:])
            grad_weight = grad.flatten(0, -2).mT @ joint.flatten(0, -2)
            return grad_streams.to(streams.dtype), grad_weight, None


class _Sinkhorn(Function):
    """Saves only the logits; the backward pass recomputes the matrices. Inside, tokens are the last axis."""

    @staticmethod
    def forward(logits: Tensor, iterations: int, hc_eps: float) -> Tensor:
        matrix = _sinkhorn(logits, iterations, hc_eps)[-1][0]
        return matrix.movedim(-1, 0).reshape(*logits.shape[:-1], *matrix.shape[:2])

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        logits, ctx.iterations, ctx.hc_eps = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        (softmax, _), *steps = _sinkhorn(logits, ctx.iterations, ctx.hc_eps)
        grad = grad.reshape(-1, *grad.shape[-2:]).movedim(0, -1)
        for index, (matrix, total) in reversed(list(enumerate(steps))):
            grad = (grad - (grad * matrix).sum(index % 2, keepdim=True)) / total
        grad = softmax * (grad - (grad * softmax).sum(1, keepdim=True))
        return grad.flatten(0, 1).mT.reshape(logits.shape), None, None


def _sinkhorn(logits: Tensor, iterations: int, hc_eps: float) -> list[tuple[Tensor, Tensor]]:
    """Returns the softmax, and after every division the matrices `[from, to, tokens]` and what divided them."""
    size = math.isqrt(logits.shape[-1])
    softmax = logits.reshape(-1, size * size).mT.unflatten(0, (size, size)).contiguous().softmax(1)
    steps, matrix = [(softmax, softmax)], softmax + hc_eps
    for step in range(2 * iterations - 1):  # sums over `from`, over `to`, ..., over `from`
        total = matrix.sum(step % 2, keepdim=True) + hc_eps
        matrix = matrix / total
        steps.append((matrix, total))
    return steps


class _Width(Function):
    """x = a^T H."""

    @staticmethod
    def forward(streams: Tensor, alpha: Tensor) -> Tensor:
        with full_precision(streams):
            return _weighted_sum(alpha[..., 0], widen(streams)).to(streams.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        streams, alpha = ctx.saved_tensors
        with full_precision(streams):
            grad = widen(grad)
            grad_streams = (alpha[..., :1] * grad.unsqueeze(-2)).to(streams.dtype)
            grad_read = (grad.unsqueeze(-2) @ widen(streams).mT).squeeze(-2).sum_to_size(alpha.shape[:-1])
            return grad_streams, pad(grad_read.unsqueeze(-1), (0, alpha.shape[-1] - 1))


class _Depth(Function):
    """H_hat = A^T H + b y^T."""

    @staticmethod
    def forward(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        # matmul goes another way, to other bits, where an operand needs a gradient, and block recompute needs none.
        with full_precision(streams):
            carried = alpha.detach()[..., 1:].mT @ widen(streams)
            return carried.addcmul_(beta.unsqueeze(-1), widen(block_output).unsqueeze(-2)).to(streams.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        streams, block_output, alpha, beta = ctx.saved_tensors
        with full_precision(streams):
            # The sum over streams hands one gradient to all: products are slow on that.
            grad = widen(grad).contiguous()
            grad_streams = (alpha[..., 1:] @ grad).to(streams.dtype)
            grad_output = _weighted_sum(beta, grad).to(block_output.dtype)
            grad_carry = (widen(streams) @ grad.mT).sum_to_size(*alpha.shape[:-1], alpha.shape[-1] - 1)
            grad_beta = (widen(block_output).unsqueeze(-2) @ grad.mT).squeeze(-2).sum_to_size(beta.shape)
            return grad_streams, grad_output, pad(grad_carry, (1, 0)), grad_beta


def _project(wide: Tensor, weight: Tensor, eps: float, centered: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the projection of the normalised streams, and rstd and mean of each stream."""
    mean = wide.mean(-1, keepdim=True) if centered else None
    size = torch.linalg.vector_norm(wide if mean is None else wide - mean, dim=-1, keepdim=True)
    rstd = torch.rsqrt(size.square() / wide.shape[-1] + eps)
    # On CPUs, the product of the transposes is twice as fast, copy included.
    product = (weight @ wide.flatten(0, -2).mT).mT.contiguous().unflatten(0, wide.shape[:-1])
    return (product if mean is None else product - mean * weight.sum(-1)) * rstd, rstd, mean


def _weighted_sum(weights: Tensor, matrix: Tensor) -> Tensor:
    """weights^T @ matrix, for weights `[..., N]`; a pass for each of the few rows is faster than a batched product."""
    first, *rows = matrix.unbind(-2)
    total = weights[..., :1] * first
    for i, row in enumerate(rows, start=1):
        total.addcmul_(weights[..., i : i + 1], row)
    return total


def _call(function: type[Function], *inputs: Tensor | float | bool) -> Any:
    """Calls a function, or its forward alone when gradients are off: decoding feels autograd's overhead."""
    return function.apply(*inputs) if torch.is_grad_enabled() else function.forward(*inputs)
