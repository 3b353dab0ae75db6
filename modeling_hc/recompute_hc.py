# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Block recompute: of every run of sites, only the first keeps its streams; the others are recomputed in backward.

A site is one hyper-connection. The streams of the next site follow from those before, the block's output and the
coefficients (Eq. 4, 5), and the latter two are kept anyway. So of N D numbers a token and site N D / sites are left,
for one more depth connection; the values are the same to the last bit.

Source: the recomputation of mHC (arXiv 2512.24880, Eq. 20), for the hyper-connections of arXiv 2409.19606.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

DepthConnection = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class _Run:
    """The first streams of a run of sites, and per site what leads to the next streams."""

    def __init__(self, streams: Tensor) -> None:
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.saved: Counter[int] = Counter()  # how many operations saved the streams after so many steps
        self._made = [streams.detach()]
        self._asked: Counter[int] = Counter()

    def add(self, block_output: Tensor, alpha: Tensor, beta: Tensor) -> None:
        # A static connection's coefficients are parameters, which FSDP2 takes away between two uses.
        alpha, beta = (c.detach() if c.dim() > 2 else c.detach().clone() for c in (alpha, beta))
        self.steps.append((block_output.detach(), alpha, beta))

    @torch.no_grad()
    def streams(self, index: int, depth_connection: DepthConnection) -> Tensor:
        """Returns the streams after `index` steps. Backward asks from the last to the first, once for each saved."""
        while len(self._made) <= index:
            self._made.append(depth_connection(self._made[-1], *self.steps[len(self._made) - 1]))
        streams = self._made[index]
        self._asked[index] += 1
        asked_again = self._asked[index] % self.saved[index] > 0
        del self._made[max(index + asked_again, 1) :]
        return streams


class StreamRecompute(saved_tensors_hooks):
    """Context in which a forward pass keeps the streams of every `sites`-th site for its backward pass.

    Args:
        sites: length of a run, at least 1. The square root of the number of sites keeps least.
        depth_connection: makes the streams again; the function that makes them in the forward pass.
    """

    def __init__(self, sites: int, depth_connection: DepthConnection) -> None:
        super().__init__(self._pack, self._unpack)
        self._sites = sites
        self._depth_connection = depth_connection
        self._run: _Run | None = None
        self._latest: Tensor | None = None  # held, so that no other tensor can have its address

    def __enter__(self) -> None:
        self._token: Token = _ACTIVE.set(self)
        super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        _ACTIVE.reset(self._token)
        self._run = self._latest = None

    def record(self, streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor, new: Tensor) -> None:
        """Records the inputs from which new streams can be recomputed."""
        if self._run is None or not _same(streams, self._latest):
            self._run = _Run(streams)
        if len(self._run.steps) + 1 < self._sites:
            self._run.add(block_output, alpha, beta)
        else:
            self._run = _Run(new)
        self._latest = new

    def _pack(self, tensor: Tensor) -> Tensor | tuple[_Run, int, torch.Size]:
        if self._run is not None and self._run.steps and _same(tensor, self._latest):
            self._run.saved[len(self._run.steps)] += 1
            return self._run, len(self._run.steps), tensor.shape
        return tensor

    def _unpack(self, packed: Tensor | tuple[_Run, int, torch.Size]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        run, index, shape = packed
        return run.streams(index, self._depth_connection).view(shape)


_ACTIVE: ContextVar[StreamRecompute | None] = ContextVar("stream_recompute", default=None)


def record(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor, new: Tensor) -> Tensor:
    """Tells the `StreamRecompute` that is active, if one is, how new streams were made, and returns them."""
    if not torch.compiler.is_compiling() and torch.is_grad_enabled() and (active := _ACTIVE.get()) is not None:
        active.record(streams, block_output, alpha, beta, new)
    return new


def _same(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are the same numbers in memory: hooks and wrappers hand a tensor on as an alias, and the
    kernels save streams with one axis of tokens."""
    if other is None or one.data_ptr() != other.data_ptr() or one.dtype != other.dtype:
        return False
    if one.shape == other.shape:
        return one.stride() == other.stride()
    return one.numel() == other.numel() and one.is_contiguous() and other.is_contiguous()


def recomputed(module: nn.Module, tensor: Tensor) -> Tensor:
    """Calls a module that draws no random numbers, saves only its input, and calls it again in the backward pass.

    This is what `torch.utils.checkpoint` does, whose overhead is several times the time of a small norm.
    """
    return _Recomputed.apply(module, tensor, *module.parameters())


class _Recomputed(Function):
    @staticmethod
    def forward(ctx, module: nn.Module, tensor: Tensor, *parameters: Tensor) -> Tensor:
        device = tensor.device.type
        ctx.autocast = nullcontext()
        if torch.amp.is_autocast_available(device):
            ctx.autocast = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.module, ctx.parameters = module, parameters
        ctx.save_for_backward(tensor)
        return module(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Any, ...]:
        (tensor,) = ctx.saved_tensors
        again = torch.is_grad_enabled()  # of the backward pass itself
        with torch.enable_grad(), ctx.autocast:
            tensor = tensor if again else tensor.detach().requires_grad_()
            now = dict(ctx.module.named_parameters())
            if all(one is other for one, other in zip(now.values(), ctx.parameters, strict=True)):
                output = ctx.module(tensor)
            else:  # `torch.func.functional_call` gave the module other parameters for the forward pass only
                output = functional_call(ctx.module, dict(zip(now, ctx.parameters, strict=True)), tensor)
        needed = [t for t, need in zip((tensor, *ctx.parameters), ctx.needs_input_grad[1:], strict=True) if need]
        grads = iter(torch.autograd.grad(output, needed, grad, create_graph=again))
        return None, *(next(grads) if need else None for need in ctx.needs_input_grad[1:])
