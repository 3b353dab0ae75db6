# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The operations of functional_hc as fused Triton kernels, and the boundary between two blocks as one kernel.

At a boundary the depth connection of one block and the width connection of the next happen in a single pass:

    H_k = A_r^T H_(k-1) + B^T y^T       carry and write, rounded to the streams' dtype before any use
    alpha, beta = coefficients(H_k)     the normalised streams are never formed
    x = A_m^T H_k                       read

One pair of kernels, forward and backward, serves the boundary and each of its halves; what is absent is compiled away.
Hence a depth connection alone has bit for bit the streams of a boundary. `traffic` says what each moves.

The block's own norm is not fused: hooks, adapters and other kinds of norms expect a module there.

Shapes: T tokens (all leading axes), N streams, D hidden size.
"""

import re

import torch
from torch import Tensor
from torch.autograd import Function

from .triton_kernels_hc import _backward_kernel, _forward_kernel, triton

Tensors = tuple[Tensor, ...]

# With TRITON_INTERPRET=1 kernels run on the CPU, as NumPy.
INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)
MAX_STREAMS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 4
FEW_TOKENS = 64  # up to here, as in decoding, the forward kernel gives a token to a program of FEW_WARPS warps
FEW_WARPS = 8
_REGISTERS = 65536  # of a multiprocessor, of any GPU since compute capability 8.0


def traffic(streams: int, before: bool, after: bool) -> tuple[int, int]:
    """Returns how many numbers of D a token moves at a boundary, forward and backward.

    These are the least that is possible with the streams in memory between the blocks. N(N+2) coefficients and a few
    numbers more come on top.

    Args:
        streams: N.
        before, after: whether there is a block before, to which the depth connection belongs, and a block after it,
            to which the width connection belongs.
    """
    forward = streams + before * (1 + streams) + after
    backward = 3 * streams + 2 * before + after
    return forward, backward


def refusal(streams: Tensor) -> str | None:
    """Returns why the kernels cannot serve these streams, or None where they can.

    Args:
        streams: `[..., N, D]`.
    """
    if streams.dtype not in DTYPES:
        return f"they take streams of fp32, bf16 or fp16, not {streams.dtype}"
    if streams.shape[-2] > MAX_STREAMS:
        return f"they take up to {MAX_STREAMS} streams, not {streams.shape[-2]}"
    if not (INTERPRETED or _can_run(streams.device)):
        return f"they need an NVIDIA GPU of compute capability 8.0 or higher, and the streams are on {streams.device}"
    return None


@torch.compiler.assume_constant_result
def _can_run(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_properties(device).major >= 8


def width_connection(streams: Tensor, alpha: Tensor) -> Tensor:
    """See `functional_hc.width_connection`."""
    return boundary(streams, (), alpha)[1]


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
    return dynamic_boundary(
        *(streams, (), weight, norm_weight, alpha_scale, beta_scale, alpha_bias, beta_bias, use_tanh, eps, centered)
    )[1:]


def depth_connection(streams: Tensor, block_output: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See `functional_hc.depth_connection`."""
    return _site(streams, (block_output, alpha, beta), (None,) * 5, True, 0.0, False)[0]


def boundary(streams: Tensor, unwritten: Tensors, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Finishes the block before and reads the next block's input with given coefficients.

    Args:
        streams: `[..., N, D]`.
        unwritten: nothing, or the block before: its output `[..., D]`, and alpha and beta of its connection.
        alpha: `(A_m A_r)` of the next block, `[N, 1+N]` or of each token `[..., N, 1+N]`.

    Returns:
        The streams that the next block reads `[..., N, D]`, and its input `[..., D]`.

    Raises:
        ValueError: the kernels cannot serve these streams.
    """
    return _site(streams, unwritten, (None, None, None, alpha, None), True, 0.0, False)[:2]


def dynamic_boundary(
    streams: Tensor,
    unwritten: Tensors,
    weight: Tensor,
    norm_weight: Tensor | None,
    alpha_scale: Tensor,
    beta_scale: Tensor,
    alpha_bias: Tensor,
    beta_bias: Tensor,
    use_tanh: bool,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finishes the block before, computes the next block's coefficients and reads its input with them.

    Args:
        streams, unwritten: see `boundary`.
        weight, norm_weight, alpha_scale, beta_scale, alpha_bias, beta_bias, use_tanh, eps, centered: see
            `functional_hc.dynamic_width_connection`.

    Returns:
        The streams that the next block reads `[..., N, D]`; its input `[..., D]`, alpha `[..., N, 1+N]` and beta
        `[..., N]`, fp32.

    Raises:
        ValueError: the kernels cannot serve these streams.
    """
    weight = weight if norm_weight is None else weight * norm_weight
    parameters = weight, alpha_scale, beta_scale, alpha_bias, beta_bias
    return _site(streams, unwritten, parameters, use_tanh, eps, centered)


def _site(
    streams: Tensor,
    unwritten: Tensors,
    parameters: tuple[Tensor | None, ...],
    use_tanh: bool,
    eps: float,
    centered: bool,
) -> tuple[Tensor, ...]:
    """Brings all leading axes to one and back, and coefficients to fp32."""
    if reason := refusal(streams):
        raise ValueError(
            f"The kernels of hyper-connections cannot run: {reason}. MODELING_HC_KERNELS=auto does without."
        )
    leading, (n, d) = streams.shape[:-2], streams.shape[-2:]
    block_output, alpha, beta = unwritten or (None, None, None)
    weight, _, _, alpha_bias, beta_bias = parameters
    _check("the block's output", block_output, (*leading, d), streams)
    _check("the weight", weight, (n + 2, d), streams)
    for name, numbers in (("alpha", alpha), ("alpha of the next block", alpha_bias)):
        _check(name, numbers, (n, n + 1), streams)
    for name, numbers in (("beta", beta), ("beta of the next block", beta_bias)):
        _check(name, numbers, (n,), streams)
    if unwritten:
        block_output = block_output.reshape(-1, d)
        alpha, beta = _per_token(alpha, leading, 2), _per_token(beta, leading, 1)
    if weight is None and alpha_bias is not None:
        parameters = (*parameters[:3], _per_token(alpha_bias, leading, 2), None)
    parameters = (None if p is None else p.float() for p in parameters)
    inputs = streams.reshape(-1, n, d), block_output, alpha, beta, *parameters
    results = _run(inputs, use_tanh, eps, centered)
    return tuple(result.reshape(*leading, *result.shape[1:]) for result in results)


def _run(inputs: tuple[Tensor | None, ...], *variant: bool | float) -> Tensors:
    """Skips autograd and the operator where nothing is differentiated or compiled: decoding feels their overhead."""
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if differentiated or torch.compiler.is_compiling():
        return _Site.apply(*inputs, *variant)
    return _results(*inputs[:2], inputs[4], inputs[7], *_launch_forward(*inputs, *variant)[:3])


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...], streams: Tensor) -> None:
    """Refuses what the kernels would read beyond its end: they know the shape and device of the streams only."""
    if tensor is not None and (tensor.shape[-len(shape) :] != shape or tensor.device != streams.device):
        raise ValueError(
            f"With streams {list(streams.shape)} on {streams.device}, the kernels of hyper-connections take {name} of "
            f"{list(shape)} there; it is {list(tensor.shape)} on {tensor.device}."
        )


def _per_token(numbers: Tensor, leading: torch.Size, own_axes: int) -> Tensor:
    """Returns coefficients `[T, ...]`, or `[1, ...]` where all tokens share them."""
    own = numbers.shape[-own_axes:]
    if numbers.dim() > own_axes:
        numbers = numbers.expand(*leading, *own)
    return numbers.float().reshape(-1, *own)


def _together(alpha: Tensor, beta: Tensor) -> Tensor:
    """Returns coefficients `[T, N, N+2]`: without a copy where a kernel made alpha and beta."""
    n = alpha.shape[-2]
    strides = (n * (n + 2), n + 2, 1)
    follows = beta.data_ptr() == alpha.data_ptr() + (n + 1) * alpha.element_size()
    if follows and alpha.stride() == strides and beta.stride() == strides[:-1]:
        return alpha.as_strided((*beta.shape, n + 2), strides)
    return torch.cat([alpha, beta.unsqueeze(-1)], dim=-1)


def _results(
    streams: Tensor,
    block_output: Tensor | None,
    weight: Tensor | None,
    alpha_bias: Tensor | None,
    new_streams: Tensor,
    block_input: Tensor,
    mix: Tensor,
) -> Tensors:
    """Returns the streams, and of the width connection the block's input, alpha and beta."""
    results = (streams if block_output is None else new_streams,)
    if alpha_bias is not None:
        results += (block_input,)
    if weight is not None:
        results += (mix[..., :-1], mix[..., -1])
    return results


class _Site(Function):
    """A depth connection and a width connection after it, or one of them; returns `_results`.

    Streams that nothing was written to are handed through, so that the gradients of their two readers meet in the
    kernel.
    """

    @staticmethod
    def forward(ctx, streams: Tensor, *inputs: Tensor | bool | float | None) -> Tensors:
        block_output, alpha, beta, weight, alpha_scale, beta_scale, alpha_bias, _, ctx.use_tanh, _, ctx.centered = (
            inputs
        )
        run = _forward if torch.compiler.is_compiling() else _launch_forward
        new_streams, block_input, mix, projection = run(streams, *inputs)
        ctx.save_for_backward(
            *(streams, block_output, alpha, beta, weight, alpha_scale, beta_scale),
            *((alpha_bias, None) if weight is None else (mix, projection)),
        )
        return _results(streams, block_output, weight, alpha_bias, new_streams, block_input, mix)

    @staticmethod
    def backward(ctx, grad_streams: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint hands each out a single time
        _, block_output, alpha, beta, weight, *_, read, _ = saved
        grads += (None,) * (3 - len(grads))
        # With create_graph, the operator makes a second derivative the error that it is.
        run = _backward if torch.compiler.is_compiling() or torch.is_grad_enabled() else _launch_backward
        results = run(*saved, grad_streams, *grads, ctx.use_tanh, ctx.centered)
        grad_streams, grad_output, grad_mix, grad_read, grad_bias, grad_weight = results
        of_before: tuple[Tensor | None, ...] = (None,) * 3
        if block_output is not None:
            grad_alpha, grad_beta = grad_mix[..., :-1], grad_mix[..., -1]
            of_before = grad_output, grad_alpha.sum_to_size(alpha.shape), grad_beta.sum_to_size(beta.shape)
        of_parameters: tuple[Tensor | None, ...] = (None,) * 5
        if weight is not None:
            of_bias, of_scale = grad_bias
            of_scale = of_scale[:, :-1].sum().reshape(1), of_scale[:, -1].sum().reshape(1)
            of_parameters = grad_weight, *of_scale, of_bias[:, :-1], of_bias[:, -1]
        elif read is not None:
            of_read = grad_read if len(grad_read) else grad_bias[0, None, :, 0]
            of_alpha = torch.nn.functional.pad(of_read.unsqueeze(-1), (0, read.shape[-2]))
            of_parameters = None, None, None, of_alpha, None
        return grad_streams, *of_before, *of_parameters, None, None, None


# A shared model brings its own copy of this file, which must have operators of its own.
# Its module is named after the model's folder; operators have ASCII names.
NAMESPACE = re.sub(r"\W", lambda character: f"_{ord(character[0]):x}", __name__, flags=re.ASCII)


def _forward_results(
    streams: Tensor, block_output: Tensor | None, weight: Tensor | None, alpha_bias: Tensor | None
) -> Tensors:
    """Allocates what the forward kernel writes. An operator cannot return None: what is absent is empty."""
    t, n, d = streams.shape
    numbers = t if weight is not None else 0
    return (
        streams.new_empty(t if block_output is not None else 0, n, d),
        streams.new_empty(t if alpha_bias is not None else 0, d),
        streams.new_empty(numbers, n, n + 2, dtype=torch.float32),
        streams.new_empty(numbers, 3, triton.next_power_of_2(n * (n + 2)), dtype=torch.float32),  # z, rstd, mean
    )


def _launch_forward(
    streams: Tensor,
    block_output: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    alpha_scale: Tensor | None,
    beta_scale: Tensor | None,
    alpha_bias: Tensor | None,
    beta_bias: Tensor | None,
    use_tanh: bool,
    eps: float,
    centered: bool,
) -> Tensors:
    """Runs the forward kernel; without a weight, alpha_bias is the alpha `[1 or T, N, 1+N]` to read with."""
    results = _forward_results(streams, block_output, weight, alpha_bias)
    new_streams, block_input, *of_connection = results
    mix = None if block_output is None else _together(alpha, beta)
    dynamic = weight is not None
    bias = torch.cat([alpha_bias, beta_bias.unsqueeze(-1)], dim=-1) if dynamic else None
    read = None if dynamic else alpha_bias
    if tokens := streams.shape[0]:
        sizes = _sizes(streams, 8 if streams.element_size() == 2 else 4, tokens <= FEW_TOKENS)
        with torch.cuda.device_of(streams):
            _forward_kernel[(triton.cdiv(tokens, sizes["ROWS"]),)](
                *_contiguous(streams, block_output, mix, weight),
                weight.sum(-1) if dynamic and centered else None,
                *_contiguous(alpha_scale, beta_scale, bias, read),
                None if block_output is None else new_streams,
                None if alpha_bias is None else block_input,
                *(of_connection if dynamic else (None, None)),
                tokens,
                eps,
                MIX_STEP=_step(mix),
                READ_STEP=_step(read),
                READ_ROW=0 if read is None else read.shape[-1],
                USE_TANH=use_tanh,
                **sizes,
            )
    return results


_forward = torch.library.custom_op(
    f"{NAMESPACE}::forward",
    _launch_forward,
    mutates_args=(),
    schema="(Tensor streams, Tensor? block_output, Tensor? alpha, Tensor? beta, Tensor? weight, Tensor? alpha_scale, "
    "Tensor? beta_scale, Tensor? alpha_bias, Tensor? beta_bias, bool use_tanh, float eps, bool centered) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


@_forward.register_fake
def _(streams, block_output, alpha, beta, weight, alpha_scale, beta_scale, alpha_bias, *_) -> Tensors:
    return _forward_results(streams, block_output, weight, alpha_bias)


def _launch_backward(
    streams: Tensor,
    block_output: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    alpha_scale: Tensor | None,
    beta_scale: Tensor | None,
    read: Tensor | None,
    projection: Tensor | None,
    grad_new_streams: Tensor,
    grad_input: Tensor | None,
    grad_new_alpha: Tensor | None,
    grad_new_beta: Tensor | None,
    use_tanh: bool,
    centered: bool,
) -> Tensors:
    """Runs the backward kernel; the first column of `read`, `[1 or T, N, ...]`, is what was read with."""
    tokens, n = streams.shape[:2]
    results = _backward_results(streams, block_output, weight, read)
    grad_streams, grad_output, grad_mix, grad_read, grad_bias, grad_weight = results
    mix = None if block_output is None else _together(alpha, beta)
    dynamic = weight is not None
    sizes = _sizes(streams, 4)
    programs = min(triton.cdiv(tokens, ROWS), _programs_at_once(streams))
    bias_sums = streams.new_empty(programs, 2, sizes["SLOTS"], dtype=torch.float32)
    weight_sums = grad_weight.new_empty(programs, *grad_weight.shape)
    if tokens:
        with torch.cuda.device_of(streams):
            _backward_kernel[(programs,)](
                *_contiguous(streams, block_output, mix, weight),
                weight.sum(-1) if dynamic and centered else None,
                *_contiguous(alpha_scale, beta_scale, read, projection, grad_new_streams, grad_input),
                *_contiguous(_together(grad_new_alpha, grad_new_beta) if dynamic else None),
                grad_streams,
                *((None, None) if block_output is None else (grad_output, grad_mix)),
                grad_read if len(grad_read) else None,
                None if read is None else bias_sums,
                weight_sums if dynamic else None,
                tokens,
                MIX_STEP=_step(mix),
                READ_STEP=_step(read),
                READ_ROW=0 if read is None else read.shape[-1],
                USE_TANH=use_tanh,
                **sizes,
                **({} if INTERPRETED else {"maxnreg": _REGISTERS // (_programs_a_processor(n) * 32 * ROWS)}),
            )
    if dynamic:
        torch.sum(weight_sums, 0, out=grad_weight)
    if len(grad_bias):
        torch.sum(bias_sums[..., : n * (n + 2)].unflatten(-1, (n, n + 2)), 0, out=grad_bias)
    return results


_backward = torch.library.custom_op(
    f"{NAMESPACE}::backward",
    _launch_backward,
    mutates_args=(),
    schema="(Tensor streams, Tensor? block_output, Tensor? alpha, Tensor? beta, Tensor? weight, Tensor? alpha_scale, "
    "Tensor? beta_scale, Tensor? read, Tensor? projection, Tensor grad_new_streams, Tensor? grad_input, "
    "Tensor? grad_new_alpha, Tensor? grad_new_beta, bool use_tanh, bool centered) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_backward.register_fake
def _(streams, block_output, alpha, beta, weight, alpha_scale, beta_scale, read, *_) -> Tensors:
    return _backward_results(streams, block_output, weight, read)


def _backward_results(
    streams: Tensor, block_output: Tensor | None, weight: Tensor | None, read: Tensor | None
) -> Tensors:
    """Allocates the gradients of streams, block output and its coefficients; of the read per token; of bias and scale;
    of the weight."""
    t, n, d = streams.shape
    depth = t if block_output is not None else 0
    per_token = weight is None and read is not None and read.shape[0] > 1
    return (
        streams.new_empty(t, n, d),
        (streams if block_output is None else block_output).new_empty(depth, d),
        streams.new_empty(depth, n, n + 2, dtype=torch.float32),
        streams.new_empty(t if per_token else 0, n, dtype=torch.float32),
        streams.new_empty(0 if read is None or per_token else 2, n, n + 2, dtype=torch.float32),
        streams.new_empty(n + 2, d if weight is not None else 0, dtype=torch.float32),
    )


def _sizes(streams: Tensor, columns_per_thread: int, few: bool = False) -> dict[str, int]:
    """Returns the sizes of a program: as many warps as rows, and a tile's row no wider than what a warp holds.

    Then each warp has a token of its own, and no sum over D crosses warps. Few tokens would leave most of a GPU idle:
    then a program of several warps has one token.
    """
    _, n, d = streams.shape
    rows, warps = (1, FEW_WARPS) if few else (ROWS, ROWS)
    threads = 32 * warps // rows
    columns = min(triton.next_power_of_2(d), threads * (columns_per_thread if n <= 4 else columns_per_thread // 2))
    slots = triton.next_power_of_2(n * (n + 2))
    return {
        "N": n,
        "D": d,
        "ROWS": rows,
        "num_warps": warps,
        "COLUMNS": columns,
        "LANES": min(threads, columns),
        "SLOTS": slots,
    }


def _programs_a_processor(n: int) -> int:
    """Returns how many programs of the backward kernel a multiprocessor runs: their registers are capped to this."""
    return 4 if n <= 2 else 2


def _programs_at_once(streams: Tensor) -> int:
    if not streams.is_cuda:
        return 2
    processors = torch.cuda.get_device_properties(streams.device).multi_processor_count
    return _programs_a_processor(streams.shape[1]) * processors


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _step(numbers: Tensor | None) -> int:
    """Returns the distance from a token's numbers to the next token's: 0 where all tokens share them."""
    return 0 if numbers is None or numbers.shape[0] == 1 else numbers[0].numel()
