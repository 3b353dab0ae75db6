# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The one rule that picks how an operation is computed.

Streams on a GPU get the kernels of triton_hc, where these can serve them. Else compilers get the reference, which
they fuse, and eager mode gets the hand-written backward passes. Tracers and the transforms of torch.func get the
reference everywhere. So does decoding, where it is the fastest: it has the fewest operations.
`with modeling_hc.kernels(...)` overrides the rule, and so does the environment variable MODELING_HC_KERNELS, which is
read when this file is loaded:

    auto        the rule (default)
    reference   functional_hc, always
    triton      the kernels, always; an error where they cannot serve
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .autograd_hc import depth_connection as depth_connection_by_hand
from .autograd_hc import dynamic_width_connection as dynamic_width_connection_by_hand
from .autograd_hc import joint_projection as joint_projection_by_hand
from .autograd_hc import sinkhorn as sinkhorn_by_hand
from .autograd_hc import width_connection as width_connection_by_hand
from .functional_hc import depth_connection as reference_depth_connection
from .functional_hc import dynamic_width_connection as reference_dynamic_width_connection
from .functional_hc import joint_projection as reference_joint_projection
from .functional_hc import read_slots
from .functional_hc import sinkhorn as reference_sinkhorn
from .functional_hc import width_connection as reference_width_connection
from .recompute_hc import record

KERNELS = os.environ.get("MODELING_HC_KERNELS", "auto")
_CHOICES = ("auto", "reference", "triton")
_FEW = 8192
"""So many numbers in the streams cost less time than the operations on them; measured on a CPU, fp32 and bf16."""
if KERNELS not in _CHOICES:
    raise ValueError(f"MODELING_HC_KERNELS is auto, reference or triton, not {KERNELS!r}.")

try:
    from .triton_hc import boundary as fused_boundary
    from .triton_hc import depth_connection as fused_depth_connection
    from .triton_hc import dynamic_boundary as fused_dynamic_boundary
    from .triton_hc import refusal
except ImportError:
    if KERNELS == "triton":
        raise

    def refusal(streams: Tensor) -> str | None:
        return "Triton is absent"


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Overrides the rule in all threads while the context lasts, backward passes included.

    Args:
        choice: "auto", "reference" or "triton", as in MODELING_HC_KERNELS.

    Raises:
        ValueError: it is none of them.
    """
    global KERNELS
    if choice not in _CHOICES:
        raise ValueError(f"kernels({choice!r}): give one of {', '.join(_CHOICES)}.")
    before, KERNELS = KERNELS, choice
    try:
        yield
    finally:
        KERNELS = before


Operation = Callable[..., Any]


def transforms() -> bool:
    """Returns whether a tracer or a transform of torch.func runs, which can look into torch's own operations only."""
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def needs_reference() -> bool:
    """Returns whether what runs the operations differentiates, vectorises or saves for the backward pass itself."""
    return torch.compiler.is_compiling() or transforms()


def fuses(streams: Tensor) -> bool:
    """Returns whether the kernels compute what follows on these streams."""
    if KERNELS == "triton":
        return True
    return KERNELS == "auto" and streams.is_cuda and not transforms() and refusal(streams) is None


def _decodes(streams: Tensor) -> bool:
    """Returns whether a token of each sequence is computed, and nothing is differentiated.

    Recomputation, which must return the same bits, also runs without gradients, but on whole sequences.
    """
    return not torch.is_grad_enabled() and streams.shape[1:2] == (1,) and streams.numel() <= _FEW


def _unfused(reference: Operation, by_hand: Operation) -> Operation:
    @wraps(reference)
    def operation(streams: Tensor, *args: Any) -> Any:
        # Tracers come first: they would write down what is asked of shapes.
        plain = needs_reference() or KERNELS == "reference" or _decodes(streams)
        return (reference if plain else by_hand)(streams, *args)

    return operation


dynamic_width_connection = _unfused(reference_dynamic_width_connection, dynamic_width_connection_by_hand)
joint_projection = _unfused(reference_joint_projection, joint_projection_by_hand)
sinkhorn = _unfused(reference_sinkhorn, sinkhorn_by_hand)
unfused_width_connection = _unfused(reference_width_connection, width_connection_by_hand)
unfused_depth_connection = _unfused(reference_depth_connection, depth_connection_by_hand)


def width_connection(streams: Tensor, alpha: Tensor) -> Tensor:
    """See `functional_hc.width_connection`, which always computes fractions itself."""
    return (unfused_width_connection if read_slots(alpha) == 1 else reference_width_connection)(streams, alpha)


def depth_connection(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See `functional_hc.depth_connection`, which always computes fractions itself."""
    if read_slots(alpha) > 1:
        operation = reference_depth_connection
    else:
        operation = fused_depth_connection if fuses(streams) else unfused_depth_connection
    return record(streams, block_output, alpha, beta, operation(streams, block_output, alpha, beta))


def boundary(streams: Tensor, unwritten: tuple[Tensor, ...], alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Finishes the block before, and reads the next block's input with given coefficients.

    Args:
        streams: `[..., N, D]`.
        unwritten: nothing, or what `depth_connection` needs: the output of the block before, and its alpha and beta.
        alpha: of the next block, `[N, 1+N]`, or of each token `[..., N, 1+N]`; of fractions `[..., N, N+N]`.

    Returns:
        The streams that the next block reads `[..., N, D]`, and its input `[..., D]`.
    """
    if read_slots(alpha) == 1 and fuses(streams):
        new, block_input = fused_boundary(streams, unwritten, alpha)
        return (record(streams, *unwritten, new) if unwritten else new), block_input  # type: ignore[call-arg]
    if unwritten:
        streams = depth_connection(streams, *unwritten)
    return streams, width_connection(streams, alpha)


def dynamic_boundary(
    streams: Tensor, unwritten: tuple[Tensor, ...], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finishes the block before, computes the next block's coefficients, and reads its input with them.

    Args:
        streams, unwritten: see `boundary`.
        *arguments: of `functional_hc.dynamic_width_connection`, but for the streams.

    Returns:
        The streams that the next block reads `[..., N, D]`; its input, alpha and beta.
    """
    if fuses(streams):
        new, *read = fused_dynamic_boundary(streams, unwritten, *arguments)
        return (record(streams, *unwritten, new) if unwritten else new), *read  # type: ignore[call-arg, return-value]
    if unwritten:
        streams = depth_connection(streams, *unwritten)
    return streams, *dynamic_width_connection(streams, *arguments)
