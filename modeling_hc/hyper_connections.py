# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The variants of hyper-connections: each is a module with its own way from the streams to (alpha, beta).

    streams, block_input, alpha, beta = connection(streams)
    streams, block_input, alpha, beta = next_connection(streams, block(block_input), alpha, beta)
    streams = depth_connection(streams, next_block(block_input), alpha, beta)

A connection reads the input of its block. Handed the output of the block before, it first finishes that block: writing
for one block and reading for the next is one step over the streams, the boundary between two blocks.

Shapes: `B` batch, `S` sequence, `N` streams, `D` hidden size; streams are `[B, S, N, D]`.

Parameter names decide weight decay: the Trainer of transformers leaves out every parameter whose path contains `bias`
or a segment `norm`, which is the paper's rule (the static part is not decayed, the dynamic part is). The paper does
not say what holds for the two gates, which decay here like the rest of the dynamic part, nor for the norm's weight
(`norm`), which does not, like every other norm.
"""

import sys
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from .dispatch_hc import boundary, dynamic_boundary


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.itemsize < 4


def _warn_if_narrow(connection: "HyperConnection") -> None:
    """Says it where something trains parameters in a lower precision in spite of `_apply`."""
    if connection.training and not torch.compiler.is_compiling() and _is_narrow(connection.alpha_bias):
        _warn(connection.alpha_bias.dtype)


@cache
def _warn(dtype: torch.dtype) -> None:
    warnings.warn(
        f"Hyper-connections are trained in {dtype}, which rounds their small steps away. Keep their parameters in "
        "fp32: under FSDP2 with model.shard_connections(), under DeepSpeed with torch_autocast in the place of bf16 "
        "and fp16, elsewhere by calling float() on each of these modules before training.",
        stacklevel=4,
    )


def _deepspeed_runs() -> bool:
    comm = sys.modules.get("deepspeed.comm")
    return comm is not None and comm.is_initialized()


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


class HyperConnection(nn.Module):
    """What all variants share: the static coefficients, and parameters that stay fp32.

    Args:
        num_streams: N, at least 1.
        hidden_size: D.
        block_index: k, the position of the block in the network, counting attention and MLP, from 0. The paper counts
            from 1 in its figures; a shift only relabels the streams.

    Source: Eq. 1, 14 and Algorithm 2 (`static_alpha`, `static_beta`).
    """

    def __init__(self, num_streams: int, hidden_size: int, block_index: int) -> None:
        super().__init__()
        self.num_streams = num_streams
        self.hidden_size = hidden_size
        self.block_index = block_index
        self.alpha_bias = _parameter(num_streams, 1 + num_streams)
        self.beta_bias = _parameter(num_streams)

    def initial_values(self) -> dict[str, Tensor]:
        """Returns the initial value of every parameter by name, fp32: B = 1, A_m = e_(k mod N), A_r = I (Eq. 14)."""
        carry = torch.eye(self.num_streams, dtype=torch.float32)
        read = carry[:, self.block_index % self.num_streams, None]
        return {
            "alpha_bias": torch.cat([read, carry], dim=1),
            "beta_bias": torch.ones(self.num_streams, dtype=torch.float32),
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for name, value in self.initial_values().items():
            getattr(self, name).copy_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """nn.Module's, which is behind `to`, `half`, `cuda` and the like; parameters are fp32 or wider after it.

        What cast them by other means is mended, too: who trains moves a model to its device before wrapping it.
        """
        if _deepspeed_runs():  # which has one dtype for all parameters, and would compute everything in fp32
            return super()._apply(fn, recurse)

        def keep(tensor: Tensor) -> Tensor:
            wide = tensor.float() if _is_narrow(tensor) else tensor
            applied = fn(wide)
            return wide.to(applied.device) if _is_narrow(applied) else applied

        return super()._apply(keep, recurse)

    def extra_repr(self) -> str:
        return f"num_streams={self.num_streams}, hidden_size={self.hidden_size}, block_index={self.block_index}"


class StaticHyperConnection(HyperConnection):
    """Static hyper-connection (SHC): (alpha, beta) are learned and the same for every token.

    At first the block reads stream `block_index mod N`, writes to all streams, and the streams are carried unmixed.
    All streams then stay equal, which makes a fresh model a Pre-Norm residual network.

    Args:
        num_streams, hidden_size, block_index: see `HyperConnection`.
    """

    def __init__(self, num_streams: int, hidden_size: int, block_index: int) -> None:
        super().__init__(num_streams, hidden_size, block_index)
        self.reset_parameters()

    def forward(self, streams: Tensor, *unwritten: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reads the block's input.

        Args:
            streams: `[B, S, N, D]`.
            *unwritten: nothing, or the block before: its output `[B, S, D]` and the alpha and beta of its connection,
                where the streams are the ones that block read.

        Returns:
            The streams that this block reads `[B, S, N, D]`, its input `[B, S, D]`, alpha `[..., N, 1+N]` and beta
            `[..., N]`; the leading axes are `B, S` in a dynamic connection and none in a static one.
        """
        _warn_if_narrow(self)
        streams, block_input = boundary(streams, unwritten, self.alpha_bias)
        return streams, block_input, self.alpha_bias, self.beta_bias


class DynamicHyperConnection(HyperConnection):
    """Dynamic hyper-connection (DHC): a token's streams move its coefficients around the learned static ones.

    Args:
        num_streams, hidden_size, block_index: see `HyperConnection`.
        use_tanh: False gives the paper's "W/O tanh" variant.
        eps: of the norm over each stream; the paper states none.
        centered: True for LayerNorm, False for RMSNorm.
        affine: whether the norm has a weight, the parameter `norm`. (Not a module of its own: what offloads or shards
            parameters brings back those of the module that is called.)

    Source: Eq. 8-14 and Algorithm 2 (`dynamic_alpha_fn`, `dynamic_alpha_scale`, `dynamic_beta_fn`,
    `dynamic_beta_scale`, `layer_norm`).
    """

    def __init__(
        self,
        num_streams: int,
        hidden_size: int,
        block_index: int,
        use_tanh: bool = True,
        eps: float = 1e-6,
        centered: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__(num_streams, hidden_size, block_index)
        self.use_tanh = use_tanh
        self.eps = eps
        self.centered = centered
        self.affine = affine
        self.alpha_weight = _parameter(1 + num_streams, hidden_size)
        self.beta_weight = _parameter(hidden_size)
        self.alpha_scale = _parameter(1)  # not a scalar, which FSDP2 cannot shard
        self.beta_scale = _parameter(1)
        if affine:
            self.norm = _parameter(hidden_size)
        self.reset_parameters()

    def initial_values(self) -> dict[str, Tensor]:
        """Adds W_m = W_r = W_beta = 0 (Eq. 14), s_alpha = s_beta = 0.01 (Algorithm 2) and the norm's ones."""
        values = super().initial_values() | {
            "alpha_weight": torch.zeros(1 + self.num_streams, self.hidden_size, dtype=torch.float32),
            "beta_weight": torch.zeros(self.hidden_size, dtype=torch.float32),
            "alpha_scale": torch.full((1,), 0.01, dtype=torch.float32),
            "beta_scale": torch.full((1,), 0.01, dtype=torch.float32),
        }
        return values | {"norm": torch.ones(self.hidden_size, dtype=torch.float32)} if self.affine else values

    def forward(self, streams: Tensor, *unwritten: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `StaticHyperConnection.forward`; alpha and beta are fp32 or wider."""
        _warn_if_narrow(self)
        return dynamic_boundary(
            streams,
            unwritten,
            torch.cat([self.alpha_weight, self.beta_weight[None]]),
            self.norm if self.affine else None,
            self.alpha_scale,
            self.beta_scale,
            self.alpha_bias,
            self.beta_bias,
            self.use_tanh,
            self.eps,
            self.centered,
        )

    def extra_repr(self) -> str:
        norm = f"{'LayerNorm' if self.centered else 'RMSNorm'}, eps={self.eps}, affine={self.affine}"
        return f"{super().extra_repr()}, use_tanh={self.use_tanh}, {norm}"
