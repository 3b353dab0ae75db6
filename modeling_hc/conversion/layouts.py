# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Parameter layouts of other implementations: the state of one hyper-connection, as a dict of tensors, both ways.

    here                      Algorithm 2, lucidrains        note
    alpha_bias    [N, 1+N]    static_alpha                   same
    beta_bias     [N]         static_beta                    same
    alpha_weight  [1+N, D]    dynamic_alpha_fn  [D, 1+N]     transposed
    beta_weight   [D]         dynamic_beta_fn                same
    alpha_scale   [1]         dynamic_alpha_scale            a scalar in lucidrains
    beta_scale    [1]         dynamic_beta_scale             a scalar in lucidrains
    norm          [D]         layer_norm.weight (and bias)   Algorithm 2: LayerNorm
                              norm.gamma = norm - 1          lucidrains: RMSNorm

The kind of norm is not stored in the parameters; build the module with the norm that each function names.
Static hyper-connections have the first two parameters only.

    here, of the bounded variants     DeepSeek-V4, GLM-5, Hy4      mHC-lite, KromHC (without its factor gamma + 1)
    weight  [2N+C, N*D]               fn, hc_fn in a head          dynamic_alpha_fn [N*D, N+C], dynamic_beta_fn
    bias    [2N+C]                    base, hc_base                static_alpha [N+C], static_beta [N]
    scale   [3]                       scale, hc_scale              pre_branch_scale, h_post_scale, residual_scale

Sources: Algorithm 2 of arXiv 2409.19606; `hyper_connections.HyperConnections` of the package hyper-connections 0.4.11
(github.com/lucidrains/hyper-connections); deepseek_v4, glm5_next and hy_v4 in transformers 5.23, whose names
TileKernels has, too; the repositories FFTYYY/mhc-lite and wz1119/KromHC.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_STATIC = {"alpha_bias": "static_alpha", "beta_bias": "static_beta"}
_DYNAMIC = {
    "alpha_weight": "dynamic_alpha_fn",
    "beta_weight": "dynamic_beta_fn",
    "alpha_scale": "dynamic_alpha_scale",
    "beta_scale": "dynamic_beta_scale",
}


def from_algorithm_2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the parameters of the paper's Algorithm 2 to those of a hyper-connection of this package.

    The module to load them has `centered=True` and the eps of the original.

    Args:
        state: `static_alpha` `[N, 1+N]` and so on, see the top of this file.

    Returns:
        `alpha_bias` and so on, for `load_state_dict`.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape; or `layer_norm.bias` is not zero, which no
            hyper-connection of this package can represent, since their norms have no bias.
    """
    if "layer_norm.bias" in state and state["layer_norm.bias"].any():
        raise ValueError("layer_norm.bias is not zero, and the norms in the hyper-connections here have no bias.")
    ours = _from(state, ("layer_norm.weight", "layer_norm.bias"))
    return ours | ({"norm": state["layer_norm.weight"]} if "layer_norm.weight" in state else {})


def to_algorithm_2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the parameters of a hyper-connection of this package to those of the paper's Algorithm 2.

    Args:
        state: of a static hyper-connection, or a dynamic one that is `centered`.

    Returns:
        The parameters of Algorithm 2; its LayerNorm has a weight of ones where the norm has none, and a bias of zeros.

    Raises:
        ValueError: a parameter is missing or unknown.
    """
    theirs = _to(state)
    if "beta_weight" in state:
        weight = state.get("norm", torch.ones_like(state["beta_weight"]))
        theirs |= {"layer_norm.weight": weight, "layer_norm.bias": torch.zeros_like(weight)}
    return theirs


def from_lucidrains(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the parameters of lucidrains' `HyperConnections` to those of a hyper-connection of this package.

    The module to load them has `eps=1e-24 / D`: the original divides by the length of a stream,
    or by 1e-12 if that is more; the two differ for streams of about that length only.

    What has no counterpart here: several input views, fractions (`num_fracs`), no write (`add_branch_out_to_residual=
    False`), the embedding of streams, another reduction than their sum, and dropout. The original stacks the streams
    along the batch, `(b s) ... d`.

    Args:
        state: its parameters, without those of its branch.

    Returns:
        `alpha_bias` and so on, for `load_state_dict`.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    ours = _from(state, ("norm.gamma",))
    return ours | ({"norm": state["norm.gamma"] + 1} if "norm.gamma" in state else {})


def to_lucidrains(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the parameters of a dynamic hyper-connection of this package to those of lucidrains' `HyperConnections`.

    Args:
        state: of a dynamic hyper-connection that is not `centered`; see `from_lucidrains` for its eps. There, a
            static one is a dynamic one with zero dynamic weights.

    Returns:
        The parameters of `HyperConnections`.

    Raises:
        ValueError: a parameter is missing or unknown.
    """
    theirs = _to(state)
    if "beta_weight" not in state:
        raise ValueError("beta_weight is missing: lucidrains' HyperConnections are dynamic.")
    for name in ("dynamic_alpha_scale", "dynamic_beta_scale"):
        theirs[name] = theirs[name].reshape(())
    return theirs | {"norm.gamma": state.get("norm", torch.ones_like(state["beta_weight"])) - 1}


def from_deepseek(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the parameters of a connection, or of the last reduction, of DeepSeek-V4, GLM-5 or Hy4 in transformers.

    The module to load them has the original's `eps` (rms_norm_eps) and `hc_eps`: "mhc" for DeepSeek-V4 and GLM-5, with
    its `sinkhorn_iterations`; "identity" for Hy4, whose `hc_magnitude` must be 2, the only one here, and which also
    adds its hc_eps of 1e-6 to what is written; `GatedReduction` for a head. In bf16 theirs rounds the coefficients of
    DeepSeek-V4 and GLM-5, and ours does not.

    Args:
        state: `fn`, `base` and `scale`; or `hc_fn`, `hc_base` and `hc_scale`.

    Returns:
        `weight`, `bias` and `scale`, for `load_state_dict`.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    prefix = "hc_" if "hc_fn" in state else ""
    names = {"weight": f"{prefix}fn", "bias": f"{prefix}base", "scale": f"{prefix}scale"}
    _require(state, set(names.values()), ())
    ours = {name: state[theirs] for name, theirs in names.items()}
    rows = len(ours["bias"]) if ours["bias"].dim() == 1 else -1
    if ours["weight"].dim() != 2 or len(ours["weight"]) != rows or ours["scale"].shape not in ((1,), (2,), (3,)):
        shapes = {theirs: tuple(state[theirs].shape) for theirs in names.values()}
        raise ValueError(f"The shapes {shapes} are none of a connection: [C, N*D], [C] and [1], [2] or [3] are.")
    return ours


def from_mhc_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the parameters of mHC-lite's or KromHC's `HyperConnections` to those of "mhc_lite" or "kromhc" here.

    The module to load them has `eps=1e-24 / (N * D)`; see `from_lucidrains`, from which theirs derives. What has no
    counterpart here: several input views, fractions, no write, and the mHC of the same repository, which divides the
    sums of the carry out in the other order.

    Args:
        state: its parameters, without those of its branch.

    Returns:
        `weight`, `bias` and `scale`, for `load_state_dict`.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    scales = ("pre_branch_scale", "h_post_scale", "residual_scale")
    matrices = ("static_alpha", "static_beta", "dynamic_alpha_fn", "dynamic_beta_fn")
    _require(state, {*scales, *matrices, "norm.gamma"}, ())
    n, size, carry = len(state["static_beta"]), len(state["norm.gamma"]), state["static_alpha"].numel()
    shapes = {"static_alpha": (carry,), "dynamic_alpha_fn": (size, carry), "dynamic_beta_fn": (size, n)}
    for name, shape in shapes.items():
        if state[name].shape != shape or carry <= n:
            raise ValueError(
                f"{name} has the shape {tuple(state[name].shape)}; of mHC-lite or KromHC with {n} streams, one input "
                f"view and no fractions it is {shape}."
            )

    def rows(alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.cat([alpha[..., :n], beta, alpha[..., n:]], dim=-1)

    weight = rows(state["dynamic_alpha_fn"], state["dynamic_beta_fn"]).T * (state["norm.gamma"] + 1)
    return {
        "weight": weight.contiguous(),
        "bias": rows(state["static_alpha"], state["static_beta"]),
        "scale": torch.cat([state[name].reshape(1) for name in scales]),
    }


def _from(state: Mapping[str, Tensor], norm_names: tuple[str, ...]) -> dict[str, Tensor]:
    dynamic = not set(_DYNAMIC.values()).isdisjoint(state)
    names = _STATIC | (_DYNAMIC if dynamic else {})
    _require(state, set(names.values()), norm_names)
    num_streams = len(state["static_beta"])
    shapes: dict[str, tuple[int, ...]] = {"static_alpha": (num_streams, 1 + num_streams)}
    if dynamic:
        hidden_size = len(state["dynamic_alpha_fn"])
        shapes |= {"dynamic_alpha_fn": (hidden_size, 1 + num_streams), "dynamic_beta_fn": (hidden_size,)}
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(
                f"{name} has the shape {tuple(state[name].shape)}; with {num_streams} streams, one input view and no "
                f"fractions it is {shape}."
            )
    ours = {name: state[theirs] for name, theirs in names.items()}
    if dynamic:
        ours["alpha_weight"] = ours["alpha_weight"].T.contiguous()
        ours |= {name: ours[name].reshape(1) for name in ("alpha_scale", "beta_scale")}
    return ours


def _to(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    dynamic = not _DYNAMIC.keys().isdisjoint(state)
    names = _STATIC | (_DYNAMIC if dynamic else {})
    _require(state, set(names), ("norm",))
    theirs = {their: state[name] for name, their in names.items()}
    if dynamic:
        theirs["dynamic_alpha_fn"] = theirs["dynamic_alpha_fn"].T.contiguous()
    return theirs


def _require(state: Mapping[str, Tensor], required: set[str], optional: tuple[str, ...]) -> None:
    if missing := required - set(state):
        raise ValueError(f"{min(missing)} is missing: the state of one hyper-connection has {sorted(required)}.")
    if unknown := set(state) - required - set(optional):
        raise ValueError(f"{min(unknown)} is not a parameter of a hyper-connection, which has {sorted(required)}.")
