# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The two Triton kernels of triton_hc: forward and backward of the boundary between two blocks, or of a half of it.

Each sweeps twice over a token where coefficients or their gradients need a sum over D first. The second sweep finds
its inputs in L2: the loads of the first ask for them to be kept, the loads of the second to be dropped. The backward
pass rebuilds H_k from what the depth connection read.

A warp owns a token: sums over D stay in its registers until the end. Weight gradients are summed over tokens by one
partial sum a program, in a fixed order and without atomics, hence deterministic. (With few tokens, all warps of a
program share one.)

Shapes: T tokens, N streams, D hidden size. Coefficients of a token lie together, `[N, N+2]`: of each stream its read,
its carry and its write, which is the order of the projection's columns.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The kernels of hyper-connections need Triton, which this Python does not have.") from error

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError(f"The kernels of hyper-connections need Triton 3.6 or newer, not {triton.__version__}.")


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
    """Slot i * (N+2) + c holds what belongs to stream i and to column c of the projection; [1, SLOTS] each.

    Memory has the same order: where it has not, the compiler spreads a token's slots over warps.
    """
    slot = tl.arange(0, SLOTS)[None, :]
    return slot, slot // (N + 2), slot % (N + 2), slot < N * (N + 2)


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
def _carry_and_write(mix, live, N: tl.constexpr):
    """Loads A_r, row after row, and B."""
    carry = ()
    for i in tl.static_range(N):
        carry += _numbers(mix, live, i * (N + 2) + 1, 1, N)
    return carry, _numbers(mix, live, N + 1, N + 2, N)


@triton.jit
def _load(pointer, mask, CACHE: tl.constexpr):
    """CACHE is evict_last in a first sweep, so that L2 keeps it for the second, which evicts it first."""
    return tl.load(pointer, mask, other=0.0, eviction_policy=CACHE).to(tl.float32)


@triton.jit
def _tile(pointer, mask, N: tl.constexpr, D: tl.constexpr, CACHE: tl.constexpr):
    """Loads a tile of each of a token's N rows."""
    tile = ()
    for i in tl.static_range(N):
        tile += (_load(pointer + i * D, mask, CACHE),)
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
def _streams(
    streams, block_output, at, output_at, mask, carry, write, N: tl.constexpr, D: tl.constexpr, CACHE: tl.constexpr
):
    """A tile of the streams that a connection reads: as loaded, or after the block before."""
    tile = _tile(streams + at, mask, N, D, CACHE)
    if block_output is not None:
        output = _load(block_output + output_at, mask, CACHE)
        tile = _depth(tile, output, carry, write, streams.dtype.element_ty, N)
    return tile


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    streams,
    block_output,
    mix,
    weight,
    weight_sum,
    alpha_scale,
    beta_scale,
    bias,
    read,
    new_streams,
    block_input,
    new_mix,
    projection,
    tokens,
    eps,
    MIX_STEP: tl.constexpr,
    READ_STEP: tl.constexpr,
    READ_ROW: tl.constexpr,
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
        carry, write = _carry_and_write(mix + row * MIX_STEP, live, N)

    reads = ()
    if weight is not None:
        pivot = ()
        if weight_sum is not None:
            # Sums of squares are taken around the mean of the first tile, so that they do not cancel in the variance.
            mask = _within(columns, live, D, COLUMNS)
            at = row * (N * D) + columns
            tile = _streams(streams, block_output, at, row * D + columns, mask, carry, write, N, D, "evict_last")
            for i in tl.static_range(N):
                pivot += (_total(tile[i]) / min(COLUMNS, D),)
        product = _zeros(N * (N + 2), ROWS, LANES)
        square = _zeros(N, ROWS, LANES)
        shift = _zeros(N, ROWS, LANES)
        for start in range(0, D, COLUMNS):
            column = start + columns
            mask = _within(column, live, D, COLUMNS)
            at = row * (N * D) + column
            tile = _streams(streams, block_output, at, row * D + column, mask, carry, write, N, D, "evict_last")
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

        slot, stream, c, slots = _slots(N, SLOTS)
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
        new = tl.load(bias + slot + row * 0, slots, other=0.0) + scale * (_tanh(z) if USE_TANH else z)
        tl.store(new_mix + row * (N * (N + 2)) + slot, new, slots)
        saved = projection + row * (3 * SLOTS) + slot
        tl.store(saved, z, slots)
        tl.store(saved + SLOTS, rstd, slots)
        tl.store(saved + 2 * SLOTS, mean, slots)
        for i in tl.static_range(N):
            reads += (_pick(new, (stream == i) & (c == 0)),)
    elif block_input is not None:
        reads = _numbers(read + row * READ_STEP, live, 0, READ_ROW, N)

    for start in range(0, D, COLUMNS):
        column = start + columns
        mask = _within(column, live, D, COLUMNS)
        at = row * (N * D) + column
        tile = _streams(streams, block_output, at, row * D + column, mask, carry, write, N, D, "evict_first")
        if block_output is not None:
            _store_tile(new_streams + at, tile, mask, N, D)
        if block_input is not None:
            x = reads[0] * tile[0]
            for i in tl.static_range(1, N):
                x = _fma(reads[i], tile[i], x)
            tl.store(block_input + row * D + column, x.to(block_input.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    streams,
    block_output,
    mix,
    weight,
    weight_sum,
    alpha_scale,
    beta_scale,
    read,
    projection,
    grad_new_streams,
    grad_input,
    grad_new_mix,
    grad_streams,
    grad_output,
    grad_mix,
    grad_read,
    grad_bias,
    grad_weight,
    tokens,
    MIX_STEP: tl.constexpr,
    READ_STEP: tl.constexpr,
    READ_ROW: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    USE_TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)[None, :]
    slot, stream, c, slot_mask = _slots(N, SLOTS)
    bias_sum = tl.zeros((ROWS, SLOTS), tl.float32)
    gate_sum = tl.zeros((ROWS, SLOTS), tl.float32)
    for group in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        row = (group * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        live = row < tokens
        slots = slot_mask & live
        carry, write = (), ()
        if block_output is not None:
            carry, write = _carry_and_write(mix + row * MIX_STEP, live, N)

        reads, slopes, offsets, means, grad_projected = (), (), (), (), ()
        if grad_input is not None:
            reads = _numbers(read + row * READ_STEP, live, 0, READ_ROW, N)
            read_sums = _zeros(N, ROWS, LANES)
            for start in range(0, D, COLUMNS):
                column = start + columns
                mask = _within(column, live, D, COLUMNS)
                at = row * (N * D) + column
                tile = _streams(streams, block_output, at, row * D + column, mask, carry, write, N, D, "evict_last")
                grad_x = _load(grad_input + row * D + column, mask, "evict_last")
                sums = ()
                for i in tl.static_range(N):
                    sums += (read_sums[i] + _lanes(tile[i] * grad_x, LANES),)
                read_sums = sums

            of_mix = tl.zeros((ROWS, SLOTS), tl.float32)
            for i in tl.static_range(N):
                of_mix = _place(of_mix, i * (N + 2), _total(read_sums[i]))
            if weight is not None:
                of_mix += tl.load(grad_new_mix + row * (N * (N + 2)) + slot, slots, other=0.0)
                saved = projection + row * (3 * SLOTS) + slot
                z = tl.load(saved, slots, other=0.0)
                rstd = tl.load(saved + SLOTS, slots, other=0.0)
                bounded = _tanh(z) if USE_TANH else z
                gate_sum += of_mix * bounded
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
                        mean = projection + row * (3 * SLOTS) + (2 * SLOTS + i * (N + 2))
                        means += (tl.load(mean, live, other=0.0),)
                    for k in tl.static_range(N + 2):
                        grad_projected += (_pick(of_z, (stream == i) & (c == k)),)
            if grad_read is not None:
                tl.store(grad_read + row * N + stream, of_mix, slots & (c == 0))
            bias_sum += of_mix

        grad_carry, grad_write = (), ()
        if block_output is not None:
            grad_carry, grad_write = _zeros(N * N, ROWS, LANES), _zeros(N, ROWS, LANES)
        for start in range(0, D, COLUMNS):
            column = start + columns
            mask = _within(column, live, D, COLUMNS)
            at = row * (N * D) + column
            old = _tile(streams + at, mask, N, D, "evict_first")
            tile = old
            if block_output is not None:
                output = _load(block_output + row * D + column, mask, "evict_first")
                tile = _depth(old, output, carry, write, streams.dtype.element_ty, N)
            grad = _tile(grad_new_streams + at, mask, N, D, "evict_first")
            if grad_input is not None:
                grad_x = _load(grad_input + row * D + column, mask, "evict_first")
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
                    before = _load(partial, (flat < D) & (group != tl.program_id(0)), "evict_last")
                    tl.store(partial, before + tl.sum(from_tokens, axis=0), flat < D, eviction_policy="evict_last")
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
            tl.store(grad_mix + row * (N * (N + 2)) + slot, of_old_mix, slots)
        # The next group adds to what this one stored.
        tl.debug_barrier()
    if grad_bias is not None:
        sums = grad_bias + tl.program_id(0) * (2 * SLOTS) + tl.arange(0, SLOTS)
        tl.store(sums, tl.sum(bias_sum, axis=0))
        tl.store(sums + SLOTS, tl.sum(gate_sum, axis=0))
