# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The operations of functional_hc as fused Triton kernels, and the boundary between two blocks as one kernel.

At a boundary the depth connection of one block and the width connection of the next happen in a single pass:

    H_k = A_r^T H_(k-1) + B^T y^T       carry and write, rounded to the streams' dtype before any use
    alpha, beta = coefficients(H_k)     the normalised streams are never formed
    x = A_m^T H_k                       read

One pair of kernels, forward and backward, serves the boundary and each of its halves; what is absent is compiled away.
Hence a depth connection alone has bit for bit the streams of a boundary.

Traffic per token in multiples of D, besides n(n+2) coefficients and a few numbers more:

                                 forward     backward
    boundary                     2n + 2      3n + 3
    depth connection alone       2n + 1      3n + 2
    width connection alone       n + 1       3n + 1

These are the least that is possible with the streams in memory between the blocks. Each kernel sweeps twice over a
token where coefficients or their gradients need a sum over D first; the second sweep finds its inputs in a cache. The
backward pass rebuilds H_k from what the depth connection read.

Between two layers the halves stay apart and move 9n + 5 numbers of D instead of 5n + 5: a layer that left its
last block unfinished to the next one would need another model `forward` than upstream's, in every family.

Work is divided so that a warp owns a token: sums over D stay in its registers until the end. Weight gradients are
summed over tokens by one partial sum a program, in a fixed order and without atomics, hence deterministic.

The block's own norm is not fused: hooks, adapters and other kinds of norms expect a module there.

Shapes: T tokens (all leading axes), N streams, D hidden size.
"""

import re

import torch
from torch import Tensor
from torch.autograd import Function

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The kernels of hyper-connections need Triton, which this Python does not have.") from error

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError(f"The kernels of hyper-connections need Triton 3.6 or newer, not {triton.__version__}.")

Tensors = tuple[Tensor, ...]


@triton.jit
def _fma(a, b, c):
    """a * b + c, rounded once: the compiler may not choose, so every kernel has the same bits."""
    a, b = tl.broadcast(a, b)
    return tl.fma(a, b, c)


@triton.jit
def _tanh(x):
    """Relative error below 3 units in the last place; a fitted polynomial where 1 - exp(-2x) would cancel."""
    s = x * x
    p = -0.006276388 * s + 0.021116214
    p = p * s - 0.053875137
    p = p * s + 0.13332924
    p = p * s - 0.33333331
    small = x + x * s * p
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(s < 0.36, small, tl.where(x < 0, -large, large))


@triton.jit
def _lanes(x, LANES: tl.constexpr):
    """Sums the neighbouring columns that one thread holds: [ROWS, COLUMNS] to [ROWS, LANES]."""
    return tl.sum(tl.reshape(x, (x.shape[0], LANES, x.shape[1] // LANES)), axis=2)


@triton.jit
def _total(x):
    return tl.sum(x, axis=1, keep_dims=True)


@triton.jit
def _place(slots, at, number):
    """Writes a number of each token into one slot: [ROWS, SLOTS]."""
    return tl.where(tl.arange(0, slots.shape[1])[None, :] == at, number, slots)


@triton.jit
def _pick(slots, mask):
    """Sums each token's slots under the mask: [ROWS, 1]."""
    return _total(tl.where(mask, slots, 0.0))


@triton.jit
def _slots(N: tl.constexpr, SLOTS: tl.constexpr):
    """Slot i * (N+2) + c holds what belongs to stream i and to column c of the projection; [1, SLOTS] each."""
    slot = tl.arange(0, SLOTS)[None, :]
    return slot // (N + 2), slot % (N + 2), slot < N * (N + 2)


@triton.jit
def _load_mix(alpha, beta, stream, c, mask, N: tl.constexpr):
    """Loads alpha and beta into their slots."""
    read_and_carry = tl.load(alpha + stream * (N + 1) + c, mask & (c <= N), other=0.0)
    return read_and_carry + tl.load(beta + stream, mask & (c == N + 1), other=0.0)


@triton.jit
def _store_mix(alpha, beta, mix, stream, c, mask, N: tl.constexpr):
    tl.store(alpha + stream * (N + 1) + c, mix, mask & (c <= N))
    tl.store(beta + stream, mix, mask & (c == N + 1))


@triton.jit
def _within(column, live, D: tl.constexpr, COLUMNS: tl.constexpr):
    return live & (column < D) if D % COLUMNS else live & (column >= 0)


@triton.jit
def _zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros += (tl.zeros((ROWS, LANES), tl.float32),)
    return zeros


@triton.jit
def _numbers(pointer, live, START: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):
    """Loads COUNT numbers a token."""
    numbers = ()
    for k in tl.static_range(COUNT):
        numbers += (tl.load(pointer + (START + k * STEP), live, other=0.0),)
    return numbers


@triton.jit
def _carry_and_write(alpha, beta, live, N: tl.constexpr):
    """Loads A_r, row after row, and B."""
    carry = ()
    for i in tl.static_range(N):
        carry += _numbers(alpha, live, i * (N + 1) + 1, 1, N)
    return carry, _numbers(beta, live, 0, 1, N)


@triton.jit
def _tile(pointer, mask, N: tl.constexpr, D: tl.constexpr):
    """Loads a tile of each of a token's N rows."""
    tile = ()
    for i in tl.static_range(N):
        tile += (tl.load(pointer + i * D, mask, other=0.0).to(tl.float32),)
    return tile


@triton.jit
def _store_tile(pointer, tile, mask, N: tl.constexpr, D: tl.constexpr):
    for i in tl.static_range(N):
        tl.store(pointer + i * D, tile[i].to(pointer.dtype.element_ty), mask)


@triton.jit
def _depth(streams, output, carry, write, dtype: tl.constexpr, N: tl.constexpr):
    """H_k, rounded."""
    new = ()
    for j in tl.static_range(N):
        stream = write[j] * output
        for i in tl.static_range(N):
            stream = _fma(carry[i * N + j], streams[i], stream)
        new += (stream.to(dtype).to(tl.float32),)
    return new


@triton.jit
def _streams(streams, block_output, at, output_at, mask, carry, write, N: tl.constexpr, D: tl.constexpr):
    """A tile of the streams that a connection reads: as loaded, or after the block before."""
    tile = _tile(streams + at, mask, N, D)
    if block_output is not None:
        output = tl.load(block_output + output_at, mask, other=0.0).to(tl.float32)
        tile = _depth(tile, output, carry, write, streams.dtype.element_ty, N)
    return tile


@triton.jit
def _forward_kernel(
    streams,
    block_output,
    alpha,
    beta,
    weight,
    weight_sum,
    alpha_scale,
    beta_scale,
    alpha_bias,
    beta_bias,
    new_streams,
    block_input,
    new_alpha,
    new_beta,
    projection,
    tokens,
    alpha_step,
    beta_step,
    eps,
    N: tl.constexpr,
    D: tl.constexpr,
    USE_TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    live = row < tokens
    columns = tl.arange(0, COLUMNS)[None, :]
    carry, write = (), ()
    if block_output is not None:
        carry, write = _carry_and_write(alpha + row * alpha_step, beta + row * beta_step, live, N)

    read = ()
    if weight is not None:
        pivot = ()
        if weight_sum is not None:
            # Sums of squares are taken around the mean of the first tile, so that they do not cancel in the variance.
            mask = _within(columns, live, D, COLUMNS)
            at = row * (N * D) + columns
            tile = _streams(streams, block_output, at, row * D + columns, mask, carry, write, N, D)
            for i in tl.static_range(N):
                pivot += (_total(tile[i]) / min(COLUMNS, D),)
        product = _zeros(N * (N + 2), ROWS, LANES)
        square = _zeros(N, ROWS, LANES)
        shift = _zeros(N, ROWS, LANES)
        for start in range(0, D, COLUMNS):
            column = start + columns
            mask = _within(column, live, D, COLUMNS)
            at = row * (N * D) + column
            tile = _streams(streams, block_output, at, row * D + column, mask, carry, write, N, D)
            if weight_sum is not None:
                shifted = ()
                for i in tl.static_range(N):
                    shifted += (tl.where(mask, tile[i] - pivot[i], 0.0),)
                tile = shifted
            products, squares, shifts = (), (), ()
            for c in tl.static_range(N + 2):
                w = tl.load(weight + c * D + column + row * 0, mask, other=0.0)
                for i in tl.static_range(N):
                    products += (product[c * N + i] + _lanes(tile[i] * w, LANES),)
            for i in tl.static_range(N):
                squares += (square[i] + _lanes(tile[i] * tile[i], LANES),)
                if weight_sum is not None:
                    shifts += (shift[i] + _lanes(tile[i], LANES),)
                else:
                    shifts += (shift[i],)
            product, square, shift = products, squares, shifts

        stream, c, slots = _slots(N, SLOTS)
        slots = slots & live
        z = tl.zeros((ROWS, SLOTS), tl.float32)
        rstd = tl.zeros((ROWS, SLOTS), tl.float32)
        offset = tl.zeros((ROWS, SLOTS), tl.float32)
        mean = tl.zeros((ROWS, SLOTS), tl.float32)
        for i in tl.static_range(N):
            for k in tl.static_range(N + 2):
                z = _place(z, i * (N + 2) + k, _total(product[k * N + i]))
            from_pivot = _total(shift[i]) / D
            variance = _total(square[i]) / D - from_pivot * from_pivot
            rstd = tl.where(stream == i, tl.rsqrt(variance + eps), rstd)
            if weight_sum is not None:
                offset = tl.where(stream == i, from_pivot, offset)
                mean = tl.where(stream == i, from_pivot + pivot[i], mean)
        if weight_sum is not None:
            z -= offset * tl.load(weight_sum + c, c < N + 2, other=0.0)
        z *= rstd
        scale = tl.where(c <= N, tl.load(alpha_scale), tl.load(beta_scale))
        mix = _load_mix(alpha_bias, beta_bias, stream, c, slots, N) + scale * (_tanh(z) if USE_TANH else z)
        _store_mix(new_alpha + row * (N * (N + 1)), new_beta + row * N, mix, stream, c, slots, N)
        saved = projection + (row * N + stream) * (N + 4)
        tl.store(saved + c, z, slots)
        tl.store(saved + (N + 2), rstd, slots & (c == 0))
        tl.store(saved + (N + 3), mean, slots & (c == 0))
        for i in tl.static_range(N):
            read += (_pick(mix, (stream == i) & (c == 0)),)
    elif block_input is not None:
        read = _numbers(alpha_bias + row * 0, live, 0, N + 1, N)

    for start in range(0, D, COLUMNS):
        column = start + columns
        mask = _within(column, live, D, COLUMNS)
        at = row * (N * D) + column
        tile = _streams(streams, block_output, at, row * D + column, mask, carry, write, N, D)
        if block_output is not None:
            _store_tile(new_streams + at, tile, mask, N, D)
        if block_input is not None:
            x = read[0] * tile[0]
            for i in tl.static_range(1, N):
                x = _fma(read[i], tile[i], x)
            tl.store(block_input + row * D + column, x.to(block_input.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(
    streams,
    block_output,
    alpha,
    beta,
    weight,
    weight_sum,
    alpha_scale,
    beta_scale,
    read,
    projection,
    grad_new_streams,
    grad_input,
    grad_new_alpha,
    grad_new_beta,
    grad_streams,
    grad_output,
    grad_alpha,
    grad_beta,
    grad_mix,
    grad_weight,
    tokens,
    alpha_step,
    beta_step,
    read_step,
    N: tl.constexpr,
    D: tl.constexpr,
    USE_TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)[None, :]
    stream, c, slot_mask = _slots(N, SLOTS)
    grad_bias = tl.zeros((ROWS, SLOTS), tl.float32)
    grad_gate = tl.zeros((ROWS, SLOTS), tl.float32)
    for group in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        row = (group * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        live = row < tokens
        slots = slot_mask & live
        carry, write = (), ()
        if block_output is not None:
            carry, write = _carry_and_write(alpha + row * alpha_step, beta + row * beta_step, live, N)

        reads, slopes, offsets, means, grad_projected = (), (), (), (), ()
        if grad_input is not None:
            reads = _numbers(read + row * read_step, live, 0, N + 1, N)
            grad_read = _zeros(N, ROWS, LANES)
            for start in range(0, D, COLUMNS):
                column = start + columns
                mask = _within(column, live, D, COLUMNS)
                at = row * (N * D) + column
                tile = _streams(streams, block_output, at, row * D + column, mask, carry, write, N, D)
                grad_x = tl.load(grad_input + row * D + column, mask, other=0.0).to(tl.float32)
                sums = ()
                for i in tl.static_range(N):
                    sums += (grad_read[i] + _lanes(tile[i] * grad_x, LANES),)
                grad_read = sums

            of_mix = tl.zeros((ROWS, SLOTS), tl.float32)
            for i in tl.static_range(N):
                of_mix = _place(of_mix, i * (N + 2), _total(grad_read[i]))
            if weight is not None:
                of_mix += _load_mix(grad_new_alpha + row * (N * (N + 1)), grad_new_beta + row * N, stream, c, slots, N)
                saved = projection + (row * N + stream) * (N + 4)
                z = tl.load(saved + c, slots, other=0.0)
                rstd = tl.load(saved + (N + 2), slots, other=0.0)
                bounded = _tanh(z) if USE_TANH else z
                grad_gate += of_mix * bounded
                of_z = of_mix * tl.where(c <= N, tl.load(alpha_scale), tl.load(beta_scale)) * rstd
                if USE_TANH:
                    of_z *= 1.0 - bounded * bounded
                # d rstd / d h = -rstd^3 (h - mean) / D
                along = of_z * z * rstd / -D
                across = of_z
                if weight_sum is not None:
                    across = of_z * tl.load(weight_sum + c, c < N + 2, other=0.0) / -D
                for i in tl.static_range(N):
                    slopes += (_pick(along, stream == i),)
                    if weight_sum is not None:
                        offsets += (_pick(across, stream == i),)
                        means += (tl.load(projection + (row * N + i) * (N + 4) + (N + 3), live, other=0.0),)
                    for k in tl.static_range(N + 2):
                        grad_projected += (_pick(of_z, (stream == i) & (c == k)),)
            grad_bias += of_mix

        grad_carry, grad_write = (), ()
        if block_output is not None:
            grad_carry, grad_write = _zeros(N * N, ROWS, LANES), _zeros(N, ROWS, LANES)
        for start in range(0, D, COLUMNS):
            column = start + columns
            mask = _within(column, live, D, COLUMNS)
            at = row * (N * D) + column
            old = _tile(streams + at, mask, N, D)
            tile = old
            if block_output is not None:
                output = tl.load(block_output + row * D + column, mask, other=0.0).to(tl.float32)
                tile = _depth(old, output, carry, write, streams.dtype.element_ty, N)
            grad = _tile(grad_new_streams + at, mask, N, D)
            if grad_input is not None:
                grad_x = tl.load(grad_input + row * D + column, mask, other=0.0).to(tl.float32)
                summed = ()
                for i in tl.static_range(N):
                    summed += (_fma(reads[i], grad_x, grad[i]),)
                grad = summed
            if weight is not None:
                if weight_sum is not None:
                    centered = ()
                    for i in tl.static_range(N):
                        centered += (tile[i] - means[i],)
                    tile = centered
                summed = ()
                for i in tl.static_range(N):
                    total = _fma(slopes[i], tile[i], grad[i])
                    if weight_sum is not None:
                        total += offsets[i]
                    summed += (total,)
                grad = summed
                for k in tl.static_range(N + 2):
                    w = tl.load(weight + k * D + column + row * 0, mask, other=0.0)
                    from_tokens = grad_projected[k] * tile[0]
                    summed = ()
                    for i in tl.static_range(N):
                        summed += (_fma(grad_projected[i * (N + 2) + k], w, grad[i]),)
                        if i > 0:
                            from_tokens = _fma(grad_projected[i * (N + 2) + k], tile[i], from_tokens)
                    grad = summed
                    flat = start + tl.arange(0, COLUMNS)
                    partial = grad_weight + (tl.program_id(0) * (N + 2) + k) * D + flat
                    before = tl.load(partial, (flat < D) & (group != tl.program_id(0)), other=0.0)
                    tl.store(partial, before + tl.sum(from_tokens, axis=0), flat < D)
            if block_output is None:
                _store_tile(grad_streams + at, grad, mask, N, D)
            else:
                grad_old = ()
                for i in tl.static_range(N):
                    carried = carry[i * N] * grad[0]
                    for j in tl.static_range(1, N):
                        carried = _fma(carry[i * N + j], grad[j], carried)
                    grad_old += (carried,)
                _store_tile(grad_streams + at, grad_old, mask, N, D)
                written = write[0] * grad[0]
                for j in tl.static_range(1, N):
                    written = _fma(write[j], grad[j], written)
                tl.store(grad_output + row * D + column, written.to(grad_output.dtype.element_ty), mask)
                carries, writes = (), ()
                for i in tl.static_range(N):
                    for j in tl.static_range(N):
                        carries += (grad_carry[i * N + j] + _lanes(old[i] * grad[j], LANES),)
                for j in tl.static_range(N):
                    writes += (grad_write[j] + _lanes(output * grad[j], LANES),)
                grad_carry, grad_write = carries, writes
        if block_output is not None:
            of_old_mix = tl.zeros((ROWS, SLOTS), tl.float32)
            for i in tl.static_range(N):
                for j in tl.static_range(N):
                    of_old_mix = _place(of_old_mix, i * (N + 2) + 1 + j, _total(grad_carry[i * N + j]))
                of_old_mix = _place(of_old_mix, i * (N + 2) + N + 1, _total(grad_write[i]))
            _store_mix(grad_alpha + row * (N * (N + 1)), grad_beta + row * N, of_old_mix, stream, c, slots, N)
        # The next group adds to what this one stored.
        tl.debug_barrier()
    if grad_mix is not None:
        slot = tl.arange(0, SLOTS)
        sums = grad_mix + tl.program_id(0) * (2 * SLOTS) + slot
        tl.store(sums, tl.sum(grad_bias, axis=0))
        tl.store(sums + SLOTS, tl.sum(grad_gate, axis=0))


# With TRITON_INTERPRET=1 kernels run on the CPU, as NumPy.
INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)
MAX_STREAMS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 4


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
    """See `functional_hc.width_connection`; here alpha is shared by all tokens, `[N, 1+N]`."""
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
    """Finishes the block before and reads the next block's input with static coefficients.

    Args:
        streams: `[..., N, D]`.
        unwritten: nothing, or the block before: its output `[..., D]`, and alpha and beta of its connection.
        alpha: `(A_m A_r)` of the next block, `[N, 1+N]`.

    Returns:
        The streams that the next block reads `[..., N, D]`, and its input `[..., D]`.

    Raises:
        ValueError: the kernels cannot serve these streams.
    """
    if alpha.dim() != 2:
        raise ValueError(f"The kernels read with an alpha that all tokens share, not of shape {list(alpha.shape)}.")
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
    parameters = (None if p is None else p.float() for p in parameters)
    results = _Site.apply(streams.reshape(-1, n, d), block_output, alpha, beta, *parameters, use_tanh, eps, centered)
    return tuple(result.reshape(*leading, *result.shape[1:]) for result in results)


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


class _Site(Function):
    """A depth connection and a width connection after it, or one of them.

    Returns the streams, and of the width connection the block's input, alpha and beta. Streams that nothing was
    written to are handed through, so that the gradients of their two readers meet in the kernel.
    """

    @staticmethod
    def forward(ctx, streams: Tensor, *inputs: Tensor | bool | float | None) -> Tensors:
        block_output, alpha, beta, weight, alpha_scale, beta_scale, alpha_bias, _, ctx.use_tanh, _, ctx.centered = (
            inputs
        )
        new_streams, block_input, new_alpha, new_beta, projection = _forward(streams, *inputs)
        read = alpha_bias if weight is None else new_alpha
        ctx.save_for_backward(
            *(streams, block_output, alpha, beta, weight, alpha_scale, beta_scale, read),
            None if weight is None else projection,
        )
        results = (streams if block_output is None else new_streams,)
        if alpha_bias is not None:
            results += (block_input,)
        if weight is not None:
            results += (new_alpha, new_beta)
        return results

    @staticmethod
    def backward(ctx, grad_streams: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint hands each out a single time
        _, block_output, alpha, beta, weight, *_, read, _ = saved
        grads += (None,) * (3 - len(grads))
        *results, grad_mix, grad_weight = _backward(*saved, grad_streams, *grads, ctx.use_tanh, ctx.centered)
        grad_streams, grad_output, grad_alpha, grad_beta = results
        if block_output is None:
            grad_output = grad_alpha = grad_beta = None
        else:
            grad_alpha, grad_beta = grad_alpha.sum_to_size(alpha.shape), grad_beta.sum_to_size(beta.shape)
        of_parameters: tuple[Tensor | None, ...] = (None,) * 5
        if read is not None:
            of_bias, of_scale = grad_mix
            of_parameters = None, None, None, of_bias[:, :-1], None
            if weight is not None:
                of_scale = of_scale[:, :-1].sum().reshape(1), of_scale[:, -1].sum().reshape(1)
                of_parameters = grad_weight, *of_scale, of_bias[:, :-1], of_bias[:, -1]
        return grad_streams, grad_output, grad_alpha, grad_beta, *of_parameters, None, None, None


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
        streams.new_empty(numbers, n, n + 1, dtype=torch.float32),
        streams.new_empty(numbers, n, dtype=torch.float32),
        streams.new_empty(numbers, n, n + 4, dtype=torch.float32),  # z, rstd and mean of each stream
    )


@torch.library.custom_op(
    f"{NAMESPACE}::forward",
    mutates_args=(),
    schema="(Tensor streams, Tensor? block_output, Tensor? alpha, Tensor? beta, Tensor? weight, Tensor? alpha_scale, "
    "Tensor? beta_scale, Tensor? alpha_bias, Tensor? beta_bias, bool use_tanh, float eps, bool centered) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
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
    results = _forward_results(streams, block_output, weight, alpha_bias)
    new_streams, block_input, *of_connection = results
    inputs = _contiguous(streams, block_output, alpha, beta, weight)
    weight_sum = weight.sum(-1) if weight is not None and centered else None
    if tokens := streams.shape[0]:
        with torch.cuda.device_of(streams):
            _forward_kernel[(triton.cdiv(tokens, ROWS),)](
                *inputs,
                weight_sum,
                *_contiguous(alpha_scale, beta_scale, alpha_bias, beta_bias),
                None if block_output is None else new_streams,
                None if alpha_bias is None else block_input,
                *((None,) * 3 if weight is None else of_connection),
                tokens,
                _step(alpha),
                _step(beta),
                eps,
                USE_TANH=use_tanh,
                **_sizes(streams, 8 if streams.element_size() == 2 else 4),
            )
    return results


@_forward.register_fake
def _(streams, block_output, alpha, beta, weight, alpha_scale, beta_scale, alpha_bias, *_) -> Tensors:
    return _forward_results(streams, block_output, weight, alpha_bias)


@torch.library.custom_op(
    f"{NAMESPACE}::backward",
    mutates_args=(),
    schema="(Tensor streams, Tensor? block_output, Tensor? alpha, Tensor? beta, Tensor? weight, Tensor? alpha_scale, "
    "Tensor? beta_scale, Tensor? read, Tensor? projection, Tensor grad_new_streams, Tensor? grad_input, "
    "Tensor? grad_new_alpha, Tensor? grad_new_beta, bool use_tanh, bool centered) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
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
    tokens, n = streams.shape[:2]
    results = _backward_results(streams, block_output, weight)
    *of_inputs, grad_mix, grad_weight = results
    programs = min(triton.cdiv(tokens, ROWS), _programs_at_once(streams))
    mix_sums = streams.new_empty(programs, 2, triton.next_power_of_2(n * (n + 2)), dtype=torch.float32)
    weight_sums = grad_weight.new_empty(programs, *grad_weight.shape)
    if tokens:
        with torch.cuda.device_of(streams):
            _backward_kernel[(programs,)](
                *_contiguous(streams, block_output, alpha, beta, weight),
                weight.sum(-1) if weight is not None and centered else None,
                *_contiguous(alpha_scale, beta_scale, read, projection),
                *_contiguous(grad_new_streams, grad_input, grad_new_alpha, grad_new_beta),
                of_inputs[0],
                *((None,) * 3 if block_output is None else of_inputs[1:]),
                None if read is None else mix_sums,
                None if weight is None else weight_sums,
                tokens,
                _step(alpha),
                _step(beta),
                0 if weight is None else _step(read),
                USE_TANH=use_tanh,
                **_sizes(streams, 4),
            )
    torch.sum(weight_sums, 0, out=grad_weight)
    torch.sum(mix_sums[..., : n * (n + 2)].unflatten(-1, (n, n + 2)), 0, out=grad_mix)
    return results


@_backward.register_fake
def _(streams, block_output, alpha, beta, weight, *_) -> Tensors:
    return _backward_results(streams, block_output, weight)


def _backward_results(streams: Tensor, block_output: Tensor | None, weight: Tensor | None) -> Tensors:
    """Allocates the gradients of streams, block output, alpha and beta, of bias and scale, and of the weight."""
    t, n, d = streams.shape
    depth = t if block_output is not None else 0
    return (
        streams.new_empty(t, n, d),
        (streams if block_output is None else block_output).new_empty(depth, d),
        streams.new_empty(depth, n, n + 1, dtype=torch.float32),
        streams.new_empty(depth, n, dtype=torch.float32),
        streams.new_empty(2, n, n + 2, dtype=torch.float32),
        streams.new_empty(n + 2, d if weight is not None else 0, dtype=torch.float32),
    )


def _sizes(streams: Tensor, columns_per_thread: int) -> dict[str, int]:
    """Returns the sizes of a program: as many warps as rows, and a tile's row no wider than what a warp holds.

    Then each warp has a token of its own, and no sum over D crosses warps.
    """
    _, n, d = streams.shape
    columns = min(triton.next_power_of_2(d), 32 * (columns_per_thread if n <= 4 else columns_per_thread // 2))
    slots = triton.next_power_of_2(n * (n + 2))
    return {
        "N": n,
        "D": d,
        "ROWS": ROWS,
        "num_warps": ROWS,
        "COLUMNS": columns,
        "LANES": min(32, columns),
        "SLOTS": slots,
    }


def _programs_at_once(streams: Tensor) -> int:
    """Returns how many programs of the backward kernel run at once: by their registers, 2 or 4 a multiprocessor."""
    if not streams.is_cuda:
        return 2
    per_processor = 4 if streams.shape[1] <= 2 else 2
    return per_processor * torch.cuda.get_device_properties(streams.device).multi_processor_count


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _step(numbers: Tensor | None) -> int:
    """Returns the distance from a token's numbers to the next token's: 0 where all tokens share them."""
    return 0 if numbers is None or numbers.shape[0] == 1 else numbers[0].numel()
