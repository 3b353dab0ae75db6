# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Other implementations' parameter layouts, against the paper's Algorithm 2 and against the real library."""

from collections.abc import Callable
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hyper_connections import HyperConnections
from torch import Tensor, nn

from modeling_hc import DynamicHyperConnection, StaticHyperConnection
from modeling_hc.conversion import (
    from_algorithm_2,
    from_deepseek,
    from_lucidrains,
    from_mhc_lite,
    to_algorithm_2,
    to_lucidrains,
)
from modeling_hc.functional_hc import depth_connection
from modeling_hc.hyper_connections import CONNECTIONS, GatedReduction

B, S, D = 2, 7, 24


class Algorithm2(nn.Module):
    """The paper's Algorithm 2: its parameters under its names, and its equations."""

    def __init__(self, rate: int, dim: int, dynamic: bool) -> None:
        super().__init__()
        self.static_beta = nn.Parameter(torch.ones(rate))
        self.static_alpha = nn.Parameter(torch.zeros(rate, rate + 1))
        if dynamic:
            self.dynamic_alpha_fn = nn.Parameter(torch.zeros(dim, rate + 1))
            self.dynamic_alpha_scale = nn.Parameter(torch.ones(1) * 0.01)
            self.dynamic_beta_fn = nn.Parameter(torch.zeros(dim))
            self.dynamic_beta_scale = nn.Parameter(torch.ones(1) * 0.01)
            self.layer_norm = nn.LayerNorm(dim)

    def forward(self, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        alpha = self.static_alpha.expand(*h.shape[:3], -1)
        beta = self.static_beta.expand(*h.shape[:3])
        if hasattr(self, "layer_norm"):
            norm_h = self.layer_norm(h)
            alpha = torch.tanh(norm_h @ self.dynamic_alpha_fn) * self.dynamic_alpha_scale + alpha
            beta = torch.tanh(norm_h @ self.dynamic_beta_fn) * self.dynamic_beta_scale + beta
        mix_h = alpha.transpose(-1, -2) @ h
        return torch.einsum("blh,bln->blnh", block(mix_h[..., 0, :]), beta) + mix_h[..., 1:, :]


def randomised(module: nn.Module) -> nn.Module:
    """Trained-looking, asymmetric values, at which a transposed matrix or a swapped slot shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def streams(n: int) -> Tensor:
    torch.manual_seed(n)
    return torch.randn(B, S, n, D, requires_grad=True)


def block(h: Tensor) -> Tensor:
    return torch.sin(3 * h) + h.flip(-1)


def ours(module: nn.Module, h: Tensor) -> Tensor:
    _, block_input, alpha, beta = module(h)
    return depth_connection(h, block(block_input), alpha, beta)


def backward(output: Tensor, h: Tensor, module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradient, h.grad = h.grad, None
    return gradient, {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_equal(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("dynamic", [True, False])
def test_the_parameters_of_algorithm_2_give_its_outputs_and_gradients(n, dynamic):
    h = streams(n)
    theirs = randomised(Algorithm2(n, D, dynamic))
    if dynamic:
        nn.init.zeros_(theirs.layer_norm.bias).requires_grad_(False)
        module = DynamicHyperConnection(n, D, 0, eps=1e-5, centered=True)
    else:
        module = StaticHyperConnection(n, D, 0)
    module.load_state_dict(from_algorithm_2(theirs.state_dict()))

    expected, actual = theirs(h, block), ours(module, h)
    assert_equal(actual, expected)
    (expected_h, expected_grads), (actual_h, grads) = backward(expected, h, theirs), backward(actual, h, module)
    assert_equal(actual_h, expected_h)
    expected_grads.pop("layer_norm.bias", None)
    actual_grads = to_algorithm_2(grads)  # a gradient lies where its parameter lies
    actual_grads.pop("layer_norm.bias", None)
    assert_equal(actual_grads, expected_grads)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("use_tanh", [True, False])
def test_the_parameters_of_lucidrains_give_its_outputs_and_gradients(n, use_tanh):
    h = streams(n)
    theirs = randomised(HyperConnections(n, dim=D, layer_index=1, tanh=use_tanh))
    module = DynamicHyperConnection(n, D, 0, eps=1e-24 / D, use_tanh=use_tanh)
    module.load_state_dict(from_lucidrains(theirs.state_dict()))

    block_input, add_residual = theirs(h.movedim(2, 1).reshape(B * n, S, D))  # streams along the batch: (b s) ... d
    expected = add_residual(block(block_input)).view(B, n, S, D).movedim(1, 2)
    actual = ours(module, h)
    assert_equal(actual, expected)
    (expected_h, expected_grads), (actual_h, grads) = backward(expected, h, theirs), backward(actual, h, module)
    assert_equal(actual_h, expected_h)
    grads["norm"] = grads["norm"] + 1  # norm = gamma + 1 has gamma's gradient
    assert_equal(to_lucidrains(grads), expected_grads)


def test_a_stream_of_zeros_has_finite_coefficients_as_in_lucidrains():
    module = DynamicHyperConnection(2, D, 0, eps=1e-24 / D)
    theirs = randomised(HyperConnections(2, dim=D, layer_index=0))
    module.load_state_dict(from_lucidrains(theirs.state_dict()))
    zeros = torch.zeros(1, 1, 2, D)
    assert_equal(ours(module, zeros), theirs(zeros.view(2, 1, D))[1](block(torch.zeros(1, 1, D))).view(1, 1, 2, D))


@pytest.mark.parametrize("layer", range(4))
def test_a_fresh_module_of_lucidrains_is_a_fresh_module_here(layer):
    fresh = DynamicHyperConnection(3, D, layer).state_dict()
    assert_equal(from_lucidrains(HyperConnections(3, dim=D, layer_index=layer).state_dict()), dict(fresh))


@pytest.mark.parametrize("affine", [True, False])
def test_the_way_to_algorithm_2_and_back_changes_nothing(affine):
    state = dict(randomised(DynamicHyperConnection(3, D, 0, centered=True, affine=affine)).state_dict())
    theirs = to_algorithm_2(state)
    Algorithm2(3, D, dynamic=True).load_state_dict(theirs)
    torch.testing.assert_close(from_algorithm_2(theirs), {"norm": torch.ones(D)} | state, rtol=0, atol=0)


def test_the_way_to_lucidrains_and_back_changes_rounding_only():
    state = dict(randomised(DynamicHyperConnection(3, D, 0)).state_dict())
    theirs = to_lucidrains(state)
    HyperConnections(3, dim=D).load_state_dict(theirs)
    torch.testing.assert_close(from_lucidrains(theirs), state, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_fracs": 2}, "static_alpha has the shape"),
        ({"num_input_views": 2}, "static_alpha has the shape"),
        ({"add_branch_out_to_residual": False}, "static_beta is missing|dynamic_beta_fn is missing"),
        ({"branch": nn.Linear(D, D)}, r"branch\.bias is not a parameter"),
    ],
)
def test_what_lucidrains_has_and_this_package_has_not_is_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_lucidrains(HyperConnections(2, dim=D, **arguments).state_dict())


def test_a_bias_in_the_norm_is_rejected():
    module = Algorithm2(2, D, dynamic=True)
    nn.init.ones_(module.layer_norm.bias)
    with pytest.raises(ValueError, match=r"layer_norm\.bias is not zero"):
        from_algorithm_2(module.state_dict())


def test_a_static_module_is_rejected_on_the_way_to_lucidrains():
    with pytest.raises(ValueError, match="are dynamic"):
        to_lucidrains(StaticHyperConnection(2, D, 0).state_dict())


# ---- the bounded variants -------------------------------------------------------------------------------------------


def upstream(family: str, kind: str) -> nn.Module:
    """A module of transformers with a carry that is far from symmetric and from convergence."""
    prefix = {"deepseek_v4": "DeepseekV4", "glm5_next": "Glm5NextText", "hy_v4": "HYV4"}[family]
    module = pytest.importorskip(
        f"transformers.models.{family}.modeling_{family}", reason="a newer transformers has it"
    )
    sizes = {"hc_mult": 4, "hidden_size": D, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-5}
    original = getattr(module, f"{prefix}{kind}")(SimpleNamespace(**sizes, hc_magnitude=2.0))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 2 else 1)
    return original


def assert_as_exact(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("family", ["deepseek_v4", "glm5_next", "hy_v4"])
@torch.no_grad()
def test_connections_of_transformers_load_by_renaming(family: str) -> None:
    original, h = upstream(family, "HyperConnection"), streams(4)
    module = CONNECTIONS["identity" if family == "hy_v4" else "mhc"](4, D, 0, eps=1e-5, hc_eps=1e-6)
    module.load_state_dict(from_deepseek(original.state_dict()))

    *coefficients, read = original(h)
    _, block_input, alpha, beta = module(h)
    comb = coefficients[1] if len(coefficients) == 2 else torch.eye(4).expand(B, S, 4, 4)
    new = coefficients[0].unsqueeze(-1) * block(read).unsqueeze(-2) + comb.mT @ h

    assert family == "hy_v4" or (comb - comb.mT).abs().max() > 0.3
    assert_as_exact(block_input, read)
    assert_as_exact(beta, coefficients[0])
    assert_as_exact(alpha[..., 1:], comb)
    assert_as_exact(depth_connection(h, block(block_input), alpha, beta), new)


@pytest.mark.parametrize("family", ["deepseek_v4", "hy_v4"])
@torch.no_grad()
def test_last_reductions_of_transformers_load_by_renaming(family: str) -> None:
    original, h = upstream(family, "HyperHead"), streams(4)
    module = GatedReduction(4, D, eps=1e-5, hc_eps=1e-6)
    module.load_state_dict(from_deepseek(original.state_dict()))

    assert_as_exact(module(h), original(h))


class MHCLite(nn.Module):
    """mHC-lite's and KromHC's layout, by their parameters' names and equations."""

    def __init__(self, n: int, carry: int) -> None:
        super().__init__()
        self.norm = nn.ParameterDict({"gamma": torch.randn(n * D)})
        self.static_alpha = nn.Parameter(torch.randn(n + carry))
        self.dynamic_alpha_fn = nn.Parameter(torch.randn(n * D, n + carry))
        self.static_beta = nn.Parameter(torch.randn(n))
        self.dynamic_beta_fn = nn.Parameter(torch.randn(n * D, n))
        self.pre_branch_scale = nn.Parameter(torch.randn(1))
        self.residual_scale = nn.Parameter(torch.randn(1))
        self.h_post_scale = nn.Parameter(torch.randn(()))

    def forward(self, h: Tensor, carry_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        n, u = h.shape[-2], h.flatten(-2)
        normed = nn.functional.normalize(u, dim=-1) * u.shape[-1] ** 0.5 * (self.norm["gamma"] + 1)
        alpha, beta = normed @ self.dynamic_alpha_fn, normed @ self.dynamic_beta_fn
        read = torch.sigmoid(self.pre_branch_scale * alpha[..., :n] + self.static_alpha[:n])
        carry = carry_of(self.residual_scale * alpha[..., n:] + self.static_alpha[n:])
        return read, carry, 2 * torch.sigmoid(self.h_post_scale * beta + self.static_beta)


def of_permutations(logits: Tensor) -> Tensor:
    matrices = torch.stack([torch.eye(4, dtype=logits.dtype)[list(order)] for order in permutations(range(4))])
    return torch.einsum("...r,rij->...ij", logits.softmax(-1), matrices)


def of_factors(logits: Tensor) -> Tensor:
    carries = []
    for token in logits.flatten(0, -2):
        factors = [torch.stack([p, p.flip(0)]) for p in token.view(2, 2).softmax(-1)]
        carries.append(torch.kron(*factors))
    return torch.stack(carries).view(*logits.shape[:-1], 4, 4)


@pytest.mark.parametrize("name, carry, carry_of", [("mhc_lite", 24, of_permutations), ("kromhc", 4, of_factors)])
@torch.no_grad()
def test_mhc_lite_and_kromhc_load_from_their_layout(name: str, carry: int, carry_of: Callable) -> None:
    torch.manual_seed(5)
    original, h = MHCLite(4, carry).double(), streams(4).double()  # in fp32, logits of several hundred cost 1e-5
    module = CONNECTIONS[name](4, D, 0, eps=1e-24 / (4 * D)).double()
    module.load_state_dict(from_mhc_lite(original.state_dict()))

    read, matrix, write = original(h, carry_of)
    _, _, alpha, beta = module(h)

    for actual, expected in ((alpha[..., 0], read), (alpha[..., 1:], matrix), (beta, write)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("base"), "base is missing"),
        (lambda s: s.update(norm=torch.ones(4)), "norm is not a parameter"),
        (lambda s: s.update(fn=torch.ones(8, 96)), "none of a connection"),
        (lambda s: s.update(scale=torch.ones(4)), "none of a connection"),
    ],
)
def test_what_is_no_connection_of_deepseek_is_refused(change: Callable[[dict], Any], message: str) -> None:
    state = {"fn": torch.ones(24, 96), "base": torch.ones(24), "scale": torch.ones(3)}
    change(state)
    with pytest.raises(ValueError, match=message):
        from_deepseek(state)


def test_the_mhc_beside_mhc_lite_is_refused() -> None:
    state = MHCLite(4, 24).state_dict() | {"static_alpha": torch.ones(4, 5), "dynamic_alpha_fn": torch.ones(96, 20)}
    with pytest.raises(ValueError, match="static_alpha has the shape"):
        from_mhc_lite(state)
