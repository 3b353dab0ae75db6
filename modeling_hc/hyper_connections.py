# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The variants of hyper-connections: each is a module with its own way from the streams to (alpha, beta).

    streams, block_input, alpha, beta = connection(streams)
    streams, block_input, alpha, beta = next_connection(streams, block(block_input), alpha, beta)
    streams = depth_connection(streams, next_block(block_input), alpha, beta)

A connection reads the input of its block. Handed the output of the block before, it first finishes that block: writing
for one block and reading for the next is one step over the streams, the boundary between two blocks.

Shapes: `B` batch, `S` sequence, `N` streams, `D` hidden size; streams are `[B, S, N, D]`.

A variant is two choices. How numbers are made of the streams: of each stream by itself (static, dynamic), or of all
streams of a token together (the others). And what keeps them in bounds: nothing, or a sigmoid for what is read and
written and a map of its own for the carry. `CONNECTIONS` lists them by name.

Parameter names decide weight decay: the Trainer of transformers leaves out every parameter whose path contains `bias`
or a segment `norm`, which is the paper's rule (the static part is not decayed, the dynamic part is). The paper does
not say what holds for the two gates, which decay here like the rest of the dynamic part, nor for the norm's weight
(`norm`), which does not, like every other norm.
"""

import math
import sys
import warnings
from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import ClassVar

import torch
from torch import Tensor, nn

from .dispatch_hc import boundary, depth_connection, dynamic_boundary, joint_projection, sinkhorn, width_connection
from .functional_hc import coefficients, full_precision, projection


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.itemsize < 4


def _warn_if_narrow(connection: "StreamModule") -> None:
    """Says it where something trains parameters in a lower precision in spite of `_apply`."""
    if connection.training and not torch.compiler.is_compiling():
        parameter = next(connection.parameters())
        if _is_narrow(parameter):
            _warn(parameter.dtype)


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


class StreamModule(nn.Module):
    """What has parameters of its own for the streams: they stay fp32, and know their initial values."""

    def initial_values(self) -> dict[str, Tensor]:
        """Returns the initial value of every parameter by name, fp32."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if next(self.parameters()).is_meta:
            return  # there is nothing to fill, and on that device even an identity matrix is slow to make
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


class HyperConnection(StreamModule):
    """What all variants share: carry, coefficients, read.

    A variant has `initial_values`, at which a fresh model is a Pre-Norm residual network, and `coefficients`.

    Args:
        num_streams: N, at least 1.
        hidden_size: D.
        block_index: k, the position of the block in the network, counting attention and MLP, from 0. The paper counts
            from 1 in its figures; a shift only relabels the streams.
    """

    label: ClassVar[str]
    """What the variant is called in text, such as a model card."""

    def __init__(self, num_streams: int, hidden_size: int, block_index: int) -> None:
        super().__init__()
        self.num_streams = num_streams
        self.hidden_size = hidden_size
        self.block_index = block_index

    def coefficients(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        """Returns alpha `[..., N, 1+N]` and beta `[..., N]` for streams `[B, S, N, D]`, fp32 or wider.

        Of fractions, alpha is `[..., N, N+N]`: as many columns are read as are carried.
        """
        raise NotImplementedError

    def static_coefficients(self) -> tuple[Tensor, Tensor]:
        """Returns alpha `[N, 1+N]` and beta `[N]` without their dynamic part."""
        raise NotImplementedError

    def forward(self, streams: Tensor, *unwritten: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reads the block's input.

        Args:
            streams: `[B, S, N, D]`.
            *unwritten: nothing, or the block before: its output `[B, S, D]` and the alpha and beta of its connection,
                where the streams are the ones that block read.

        Returns:
            The streams that this block reads `[B, S, N, D]`, its input `[B, S, D]`, alpha `[..., N, 1+N]` and beta
            `[..., N]`; the leading axes are none in a static connection and `B, S` in any other.
        """
        _warn_if_narrow(self)
        if unwritten:
            streams = depth_connection(streams, *unwritten)
        alpha, beta = self.coefficients(streams)
        return *boundary(streams, (), alpha), alpha, beta

    def extra_repr(self) -> str:
        return f"num_streams={self.num_streams}, hidden_size={self.hidden_size}, block_index={self.block_index}"


class _UnboundedHyperConnection(HyperConnection):
    """The static coefficients are parameters, and nothing bounds them.

    At first the block reads stream `block_index mod N`, writes to all streams, and the streams are carried unmixed.
    All streams then stay equal, which makes a fresh model a Pre-Norm residual network.

    Source: Eq. 1, 14 and Algorithm 2 (`static_alpha`, `static_beta`).
    """

    def __init__(self, num_streams: int, hidden_size: int, block_index: int) -> None:
        super().__init__(num_streams, hidden_size, block_index)
        self.alpha_bias = _parameter(num_streams, self.read_slots + num_streams)
        self.beta_bias = _parameter(num_streams)

    @property
    def read_slots(self) -> int:
        """How many columns of alpha are read."""
        return 1

    def initial_read(self) -> Tensor:
        """Returns A_m = e_(k mod N), `[N, 1]`."""
        return torch.eye(self.num_streams, dtype=torch.float32)[:, self.block_index % self.num_streams, None]

    def initial_values(self) -> dict[str, Tensor]:
        """Returns B = 1, A_m, A_r = I (Eq. 14)."""
        carry = torch.eye(self.num_streams, dtype=torch.float32)
        return {
            "alpha_bias": torch.cat([self.initial_read(), carry], dim=1),
            "beta_bias": torch.ones(self.num_streams, dtype=torch.float32),
        }

    def static_coefficients(self) -> tuple[Tensor, Tensor]:
        return self.alpha_bias, self.beta_bias


class StaticHyperConnection(_UnboundedHyperConnection):
    """Static hyper-connection (SHC): (alpha, beta) are learned and the same for every token.

    Args:
        num_streams, hidden_size, block_index: see `HyperConnection`.
    """

    label = "SHC"

    def __init__(self, num_streams: int, hidden_size: int, block_index: int) -> None:
        super().__init__(num_streams, hidden_size, block_index)
        self.reset_parameters()

    def forward(self, streams: Tensor, *unwritten: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `HyperConnection.forward`, which this does in one operation."""
        _warn_if_narrow(self)
        streams, block_input = boundary(streams, unwritten, self.alpha_bias)
        return streams, block_input, self.alpha_bias, self.beta_bias


class DynamicHyperConnection(_UnboundedHyperConnection):
    """Dynamic hyper-connection (DHC): a token's streams move its coefficients around the learned static ones.

    Args:
        num_streams, hidden_size, block_index: see `HyperConnection`.
        use_tanh: False gives the paper's "W/O tanh" variant.
        eps: of the norm over each stream; the paper states none.
        centered: True for LayerNorm, False for RMSNorm.
        affine: whether the norm has a weight, the parameter `norm`. (Not a module of its own: what offloads or shards
            parameters brings back those of the module that is called.)
        gate_init: initial value of both gates, s_alpha and s_beta; the paper's is 0.01.

    Source: Eq. 8-14 and Algorithm 2 (`dynamic_alpha_fn`, `dynamic_alpha_scale`, `dynamic_beta_fn`,
    `dynamic_beta_scale`, `layer_norm`).
    """

    label = "DHC"

    def __init__(
        self,
        num_streams: int,
        hidden_size: int,
        block_index: int,
        use_tanh: bool = True,
        eps: float = 1e-6,
        centered: bool = False,
        affine: bool = True,
        gate_init: float = 0.01,
    ) -> None:
        super().__init__(num_streams, hidden_size, block_index)
        self.use_tanh = use_tanh
        self.eps = eps
        self.centered = centered
        self.affine = affine
        self.gate_init = gate_init
        self.alpha_weight = _parameter(self.read_slots + num_streams, hidden_size)
        self.beta_weight = _parameter(hidden_size)
        self.alpha_scale = _parameter(1)  # not a scalar, which FSDP2 cannot shard
        self.beta_scale = _parameter(1)
        if affine:
            self.norm = _parameter(hidden_size)
        self.reset_parameters()

    def initial_values(self) -> dict[str, Tensor]:
        """Adds W_m = W_r = W_beta = 0 (Eq. 14), the gates s_alpha and s_beta (Algorithm 2) and the norm's ones."""
        values = super().initial_values() | {
            "alpha_weight": torch.zeros(self.read_slots + self.num_streams, self.hidden_size, dtype=torch.float32),
            "beta_weight": torch.zeros(self.hidden_size, dtype=torch.float32),
            "alpha_scale": torch.full((1,), self.gate_init, dtype=torch.float32),
            "beta_scale": torch.full((1,), self.gate_init, dtype=torch.float32),
        }
        return values | {"norm": torch.ones(self.hidden_size, dtype=torch.float32)} if self.affine else values

    def forward(self, streams: Tensor, *unwritten: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `HyperConnection.forward`, which this does in one operation."""
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


class FracHyperConnection(DynamicHyperConnection):
    """Frac-connection: the streams are fractions of one hidden state, each a part of its channels.

    The block reads one weighted sum for each fraction, and concatenates the sums to its input. Its output is split
    likewise, and each part is written to the fraction in its place. A fresh model is the residual network.

    Args:
        num_streams: N, the number of fractions.
        hidden_size: D / N, the size of a fraction, over which the norm goes.
        block_index, use_tanh, eps, centered, affine, gate_init: see `DynamicHyperConnection`.

    Source: arXiv 2503.14125.
    """

    label = "DFC"

    @property
    def read_slots(self) -> int:
        return self.num_streams

    def initial_read(self) -> Tensor:
        """Returns Y = I, `[N, N]`."""
        return torch.eye(self.num_streams, dtype=torch.float32)

    def coefficients(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.cat([self.alpha_weight, self.beta_weight[None]])
        projected = projection(streams, weight, self.norm if self.affine else None, self.eps, self.centered)
        static = self.alpha_bias, self.beta_bias
        return coefficients(projected, self.alpha_scale, self.beta_scale, *static, self.use_tanh)

    forward = HyperConnection.forward


class JointHyperConnection(HyperConnection):
    """Base of the variants whose coefficients come from all streams of a token together, each within bounds.

        z = W vec(H) / rms(vec(H)),    (read, write, carry) = bias + scale * z
        A_m = sigmoid(read) + hc_eps,  A_r = carry_matrix(carry),  B = 2 sigmoid(write)

    How the carry is bounded makes the variant. At first the reads sum to 1, the block writes 1 to all streams, and
    what is carried into a stream sums to 1. All streams then stay equal, which makes a fresh model a Pre-Norm residual
    network. Most of what the block reads comes from its home stream, `block_index mod N`: with equal reads, the
    streams would get equal gradients, and training would keep them equal.

    Args:
        num_streams, hidden_size, block_index: see `HyperConnection`; at least 2 streams, since a sigmoid is never 1.
        eps: added to the mean square of a token's streams.
        hc_eps: added to what is read, and where sums are divided by; only against numbers that underflow, unless it
            is that of a model with other values in it.
        gate_init: initial value of the three gates, `scale`; the paper's is 0.01.

    Source: Eq. 5-9 of arXiv 2512.24880, which states no initial value but the gate's.
    """

    def __init__(
        self,
        num_streams: int,
        hidden_size: int,
        block_index: int,
        eps: float = 1e-6,
        hc_eps: float = 1e-20,
        gate_init: float = 0.01,
    ) -> None:
        super().__init__(num_streams, hidden_size, block_index)
        self.eps = eps
        self.hc_eps = hc_eps
        self.gate_init = gate_init
        logits = len(self.initial_carry())
        self.sizes = [num_streams, num_streams, logits]
        self.weight = _parameter(sum(self.sizes), num_streams * hidden_size)
        self.bias = _parameter(sum(self.sizes))
        self.scale = _parameter(3 if logits else 2)
        self.reset_parameters()

    def initial_carry(self) -> Tensor:
        """Returns the initial logits of the carry, `[C]`."""
        raise NotImplementedError

    def carry_matrix(self, logits: Tensor) -> Tensor:
        """Returns the carry `[..., N, N]`, indexed [from, to], for logits `[..., C]`.

        What flows into a stream must sum to 1 at the initial logits, or a fresh model is no residual network.
        """
        raise NotImplementedError

    def initial_values(self) -> dict[str, Tensor]:
        """Returns W = 0, and biases at which the home stream's read is sigmoid(3) and the others share the rest."""
        n = self.num_streams
        rest = 1 / (1 + math.exp(3)) / (n - 1)  # in Python's numbers: on the meta device, tensors have none
        read = torch.full((n,), math.log(rest / (1 - rest)), dtype=torch.float32)
        read[self.block_index % n] = 3
        return {
            "weight": torch.zeros(sum(self.sizes), n * self.hidden_size, dtype=torch.float32),
            "bias": torch.cat([read, torch.zeros(n, dtype=torch.float32), self.initial_carry()]),
            "scale": torch.full((3 if self.sizes[2] else 2,), self.gate_init, dtype=torch.float32),
        }

    def coefficients(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(streams):
            projected = joint_projection(streams, self.weight, self.eps)
            scale = torch.cat([s.expand(size) for s, size in zip(self.scale, self.sizes, strict=False)])
            return self._bounded(torch.addcmul(self.bias.to(projected.dtype), projected, scale.to(projected.dtype)))

    def static_coefficients(self) -> tuple[Tensor, Tensor]:
        return self._bounded(self.bias)

    def _bounded(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        read, write, carry = logits.split(self.sizes, dim=-1)
        read = (torch.sigmoid(read) + self.hc_eps).unsqueeze(-1)
        return torch.cat([read, self.carry_matrix(carry)], dim=-1), 2 * torch.sigmoid(write)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}, hc_eps={self.hc_eps}"


class ManifoldHyperConnection(JointHyperConnection):
    """Manifold-constrained hyper-connection (mHC): the carry is doubly stochastic, by Sinkhorn's iterations.

    Args:
        num_streams, hidden_size, block_index, eps, hc_eps, gate_init: see `JointHyperConnection`.
        sinkhorn_iterations: see `functional_hc.sinkhorn`; the paper's number is 20.

    Source: arXiv 2512.24880. Its initial carry here, logits 3 on the diagonal and -3 elsewhere, others have reported.
    """

    label = "mHC"

    def __init__(
        self,
        num_streams: int,
        hidden_size: int,
        block_index: int,
        eps: float = 1e-6,
        hc_eps: float = 1e-20,
        gate_init: float = 0.01,
        sinkhorn_iterations: int = 20,
    ) -> None:
        super().__init__(num_streams, hidden_size, block_index, eps, hc_eps, gate_init)
        self.sinkhorn_iterations = sinkhorn_iterations

    def initial_carry(self) -> Tensor:
        return (6 * torch.eye(self.num_streams, dtype=torch.float32) - 3).flatten()

    def carry_matrix(self, logits: Tensor) -> Tensor:
        return sinkhorn(logits, self.sinkhorn_iterations, self.hc_eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sinkhorn_iterations={self.sinkhorn_iterations}"


class IdentityHyperConnection(JointHyperConnection):
    """Identity hyper-connection: the streams are carried unmixed; reads and writes are bounded as in mHC."""

    label = "identity-HC"

    def initial_carry(self) -> Tensor:
        return torch.zeros(0, dtype=torch.float32)

    def carry_matrix(self, logits: Tensor) -> Tensor:
        n = self.num_streams
        return torch.eye(n, dtype=logits.dtype, device=logits.device).expand(*logits.shape[:-1], n, n)


class PermutationHyperConnection(JointHyperConnection):
    """mHC-lite: the carry is a convex combination of all N! permutations, in lexicographic order.

    Source: arXiv 2601.05732.
    """

    label = "mHC-lite"

    def initial_carry(self) -> Tensor:
        return -8.0 * (torch.arange(math.factorial(self.num_streams)) > 0)

    def carry_matrix(self, logits: Tensor) -> Tensor:
        orders = torch.tensor(list(permutations(range(self.num_streams)))).to(logits.device, non_blocking=True)
        matrices = torch.eye(self.num_streams, dtype=logits.dtype, device=logits.device)[orders]
        return (logits.softmax(-1) @ matrices.flatten(1)).unflatten(-1, (self.num_streams, -1))


class KroneckerHyperConnection(JointHyperConnection):
    """KromHC: the carry is the Kronecker product of a matrix [[p, 1 - p], [1 - p, p]] for every factor 2 of N.

    Source: arXiv 2601.21579.
    """

    label = "KromHC"

    def initial_carry(self) -> Tensor:
        return torch.tensor([0.0, -8.0], dtype=torch.float32).repeat(int(math.log2(self.num_streams)))

    def carry_matrix(self, logits: Tensor) -> Tensor:
        carry = logits.new_ones(*logits.shape[:-1], 1, 1)
        for pair in logits.unflatten(-1, (-1, 2)).softmax(-1).unbind(-2):  # the first factor is outermost
            factor = torch.stack([pair, pair.flip(-1)], dim=-2)
            carry = carry[..., :, None, :, None] * factor[..., None, :, None, :]
            carry = carry.flatten(-4, -3).flatten(-2)
        return carry


CONNECTIONS: dict[str, type[HyperConnection]] = {
    "static": StaticHyperConnection,
    "dynamic": DynamicHyperConnection,
    "mhc": ManifoldHyperConnection,
    "identity": IdentityHyperConnection,
    "mhc_lite": PermutationHyperConnection,
    "kromhc": KroneckerHyperConnection,
    "frac": FracHyperConnection,
}
"""The variants, as a configuration's `connection` names them."""


class GatedReduction(StreamModule):
    """Closes the streams with weights that a token's streams decide: one more read, without carry and write.

        z = W vec(H) / rms(vec(H)),    h = sum over i of (sigmoid(bias_i + scale * z_i) + hc_eps) H_i

    At first all weights are 1 / N, which is the mean.

    Args:
        num_streams: N, at least 2.
        hidden_size: D.
        eps, hc_eps, gate_init: see `JointHyperConnection`.

    Source: the last reduction of DeepSeek-V4 and Hy4 in transformers.
    """

    def __init__(
        self, num_streams: int, hidden_size: int, eps: float = 1e-6, hc_eps: float = 1e-20, gate_init: float = 0.01
    ) -> None:
        super().__init__()
        self.num_streams = num_streams
        self.hidden_size = hidden_size
        self.eps = eps
        self.hc_eps = hc_eps
        self.gate_init = gate_init
        self.weight = _parameter(num_streams, num_streams * hidden_size)
        self.bias = _parameter(num_streams)
        self.scale = _parameter(1)
        self.reset_parameters()

    def initial_values(self) -> dict[str, Tensor]:
        n = self.num_streams
        return {
            "weight": torch.zeros(n, n * self.hidden_size, dtype=torch.float32),
            "bias": torch.full((n,), -math.log(n - 1), dtype=torch.float32),
            "scale": torch.full((1,), self.gate_init, dtype=torch.float32),
        }

    def weights(self, streams: Tensor) -> Tensor:
        """Returns the weight of each stream, `[..., N]`, fp32 or wider, for streams `[..., N, D]`."""
        with full_precision(streams):
            projected = joint_projection(streams, self.weight, self.eps)
            return torch.sigmoid(self.bias + self.scale * projected) + self.hc_eps

    def forward(self, streams: Tensor) -> Tensor:
        """Reduces streams `[..., N, D]`. Returns `[..., D]`."""
        _warn_if_narrow(self)
        return width_connection(streams, self.weights(streams).unsqueeze(-1))

    def extra_repr(self) -> str:
        return f"num_streams={self.num_streams}, hidden_size={self.hidden_size}, eps={self.eps}, hc_eps={self.hc_eps}"
