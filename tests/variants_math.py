# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The coefficients (alpha, beta) of the hyper-connections family, in plain PyTorch: what the variants are tested by.

Streams H `[..., N, D]`, indexed `[from]`. alpha `[..., N, R+N]`, indexed `[from, slot]`: R read slots, then N carry
slots indexed by `to`. beta `[..., N]`, indexed `[to]`. R is 1, or N where the streams are fractions of a hidden state:

    x   = concat_r (sum_i alpha[i, r] H[i])                        read; the block computes y = T(x)
    H_j = sum_i alpha[i, R+j] H[i] + beta[j] y_j                   carry, write; y_j = y, or its j-th part (R = N)

Two generators of logits z, and bounds on them:

    per stream    z[i] = norm(H[i]) W^T              static, dynamic, frac     alpha = bias + scale * tanh(z[i])
    joint         z = W vec(H) / rms(vec(H))         mhc, identity, mhc_lite, kromhc, circulant:  p = bias + scale * z,
                  rows of W: N read, N write, C carry      read = sigmoid(p), beta = 2 sigmoid(p), carry = matrix(p)

Sources: arXiv 2409.19606 (Eq. 8-14), 2503.14125, 2512.24880 (Eq. 5-9), 2601.05732, 2601.21579; identity: H_res = I.
"""

import math
from itertools import permutations

import torch
from torch import Tensor

P = dict[str, Tensor]
TINY = 1e-20  # keeps quotients finite where a column of logits underflows, and changes no sum of 1


def width(H: Tensor, alpha: Tensor) -> Tensor:
    reads = alpha.shape[-1] - H.shape[-2]
    return (alpha[..., :reads].mT @ H).flatten(-2)


def depth(H: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    reads = alpha.shape[-1] - H.shape[-2]
    return alpha[..., reads:].mT @ H + beta.unsqueeze(-1) * y.unflatten(-1, (reads, -1))


def rms(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def joint(H: Tensor, weight: Tensor, eps: float) -> Tensor:
    """z = W vec(H) / rms(vec(H)), `[..., C]`: the per-stream projection of one stream of width N D."""
    u = H.flatten(-2)
    return (u @ weight.mT) / rms(u, eps)


# --- per stream: the original and Frac -------------------------------------------------------------------------------
def static(H: Tensor, p: P) -> tuple[Tensor, Tensor]:
    return p["alpha_bias"], p["beta_bias"]


def dynamic(H: Tensor, p: P, eps: float = 1e-6, use_tanh: bool = True) -> tuple[Tensor, Tensor]:
    """Of fractions (frac), too: then alpha_weight has 2N rows of D/N numbers, and alpha_bias is `[N, 2N]`."""
    z = (H / rms(H, eps) * p.get("norm", 1)) @ torch.cat([p["alpha_weight"], p["beta_weight"][None]]).mT
    z = torch.tanh(z) if use_tanh else z
    return p["alpha_bias"] + p["alpha_scale"] * z[..., :-1], p["beta_bias"] + p["beta_scale"] * z[..., -1]


# --- carries: from logits to a matrix [from, to] ---------------------------------------------------------------------
def sinkhorn(logits: Tensor, iterations: int = 20, floor: float = TINY) -> Tensor:
    """exp, then sums over `to` and over `from` in turn, `from` last: what flows into a stream sums to 1.

    Paper: columns of H_res (our rows), then its rows. floor = 1e-6 is DeepSeek-V4's hc_eps: then it sums to 1 - 1e-6.
    """
    m = logits.unflatten(-1, (math.isqrt(logits.shape[-1]), -1)).softmax(-1) + floor
    m = m / (m.sum(-2, keepdim=True) + floor)
    for _ in range(iterations - 1):
        m = m / (m.sum(-1, keepdim=True) + floor)
        m = m / (m.sum(-2, keepdim=True) + floor)
    return m


def identity(logits: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=logits.dtype).expand(*logits.shape[:-1], n, n)


def permutation_matrices(n: int) -> Tensor:
    """`[N!, from, to]`, stream i to perm[i]; the identity first."""
    return torch.eye(n)[torch.tensor(list(permutations(range(n))))]


def birkhoff(logits: Tensor, n: int) -> Tensor:
    return torch.einsum("...r,rij->...ij", logits.softmax(-1), permutation_matrices(n).to(logits.dtype))


def kronecker(logits: Tensor, n: int) -> Tensor:
    """The Kronecker product of [[p, 1-p], [1-p, p]], one for every factor 2 of N, the first one outermost."""
    m = logits.new_ones(*logits.shape[:-1], 1, 1)
    for p in logits.unflatten(-1, (-1, 2)).softmax(-1).unbind(-2):
        u = torch.stack([p, p.flip(-1)], -2)
        m = (m[..., :, None, :, None] * u[..., None, :, None, :]).flatten(-4, -3).flatten(-2)
    return m


def circulant(logits: Tensor, n: int) -> Tensor:
    shifts = torch.stack([torch.eye(n, dtype=logits.dtype).roll(k, 1) for k in range(n)])
    return torch.einsum("...k,kij->...ij", logits.softmax(-1), shifts)


def first(count: int) -> Tensor:
    return -8.0 * (torch.arange(count) > 0)


CARRIES = {  # name: number of logits, matrix, initial logits
    "mhc": (lambda n: n * n, lambda p, n, f: sinkhorn(p, floor=f), lambda n: (6 * torch.eye(n) - 3).flatten()),
    "identity": (lambda n: 0, lambda p, n, f: identity(p, n), lambda n: torch.zeros(0)),
    "mhc_lite": (math.factorial, lambda p, n, f: birkhoff(p, n), lambda n: first(math.factorial(n))),
    "kromhc": (
        lambda n: 2 * int(math.log2(n)),
        lambda p, n, f: kronecker(p, n),
        lambda n: first(2).repeat(int(math.log2(n))),
    ),
    "circulant": (lambda n: n, lambda p, n, f: circulant(p, n), first),
}


def constrained(
    H: Tensor,
    p: P,
    carry: str,
    eps: float = 1e-6,
    floor: float = TINY,
    write_floor: float = 0.0,
    magnitude: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """DeepSeek-V4 and GLM: mhc, floor = 1e-6. Hy4: identity, floor = write_floor = 1e-6."""
    n = H.shape[-2]
    count, matrix, _ = CARRIES[carry]
    sizes = [n, n, count(n)]
    scale = torch.cat([s.expand(size) for s, size in zip(p["scale"], sizes, strict=False)])
    read, write, logits = (p["bias"] + scale * joint(H, p["weight"], eps)).split(sizes, -1)
    alpha = torch.cat([torch.sigmoid(read).unsqueeze(-1) + floor, matrix(logits, n, floor)], -1)
    return alpha, magnitude * torch.sigmoid(write) + write_floor


def head(H: Tensor, p: P, eps: float = 1e-6, floor: float = TINY) -> Tensor:
    """The gated reduction: the read of `constrained` alone. DeepSeek-V4, Hy4: floor = 1e-6. GLM: the mean instead."""
    read = torch.sigmoid(p["bias"] + p["scale"] * joint(H, p["weight"], eps)) + floor
    return (read.unsqueeze(-2) @ H).squeeze(-2)


def initial(variant: str, n: int, d: int, k: int = 0) -> P:
    """Values at which a fresh network is the Pre-Norm one: all streams stay equal, reads sum to 1, writes are 1.

    The k-th block's home stream has the read sigmoid(3), the others share the rest, which tells the streams apart.
    """
    if variant in ("static", "dynamic", "frac"):
        reads = torch.eye(n) if variant == "frac" else torch.eye(n)[:, k % n, None]
        p, size = (
            {"alpha_bias": torch.cat([reads, torch.eye(n)], 1), "beta_bias": torch.ones(n)},
            d // n if variant == "frac" else d,
        )
        if variant != "static":
            p |= {
                "alpha_weight": torch.zeros(reads.shape[1] + n, size),
                "beta_weight": torch.zeros(size),
                "norm": torch.ones(size),
            }
            p |= {"alpha_scale": torch.full((1,), 0.01), "beta_scale": torch.full((1,), 0.01)}
        return p
    count, _, carry = CARRIES[variant]
    rest = (1 - torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))) / max(n - 1, 1)
    read = torch.where(torch.arange(n) == k % n, 3.0, torch.logit(rest)).float()
    return {
        "weight": torch.zeros(2 * n + count(n), n * d),
        "bias": torch.cat([read, torch.zeros(n), carry(n).float()]),
        "scale": torch.full((3 if count(n) else 2,), 0.01),
    }


def coefficients(variant: str, H: Tensor, p: P) -> tuple[Tensor, Tensor]:
    if variant in CARRIES:
        return constrained(H, p, variant)
    return (static if variant == "static" else dynamic)(H, p)
