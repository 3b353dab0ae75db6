# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Other implementations' parameter layouts, against the paper's Algorithm 2 and against the real library."""

from collections.abc import Callable

import pytest
import torch
from hyper_connections import HyperConnections
from torch import Tensor, nn

from modeling_hc import DynamicHyperConnection, StaticHyperConnection
from modeling_hc.conversion import from_algorithm_2, from_lucidrains, to_algorithm_2, to_lucidrains
from modeling_hc.functional_hc import depth_connection

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
