# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The kernels against the reference in fp64: on a GPU where there is one, else in Triton's interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import variants_math
from contract import checkpoint_activations
from torch import Tensor, nn

from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM, dispatch_hc, functional_hc
from modeling_hc.hyper_connections import CONNECTIONS, JointHyperConnection

pytest.importorskip("triton", reason="Triton runs on Linux x86-64 only")
from triton.runtime import interpreter

from modeling_hc import triton_hc

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
JOINT = [name for name, variant in CONNECTIONS.items() if issubclass(variant, JointHyperConnection)]
SHAPES = {"one token": (1,), "ragged": (7,), "batch": (3, 11)}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors hold NaN until they are written, and bf16 is rounded; the interpreter would truncate.

    Programs have the shape of that for many tokens, but for the cases of one token.
    """
    monkeypatch.setattr(triton_hc, "FEW_TOKENS", 1)
    widen_or_truncate = interpreter._convert_float

    def convert(values: np.ndarray, source: object, target: object, mode: object) -> np.ndarray:
        if str(target) != "bf16":
            return widen_or_truncate(values, source, target, mode)
        return torch.from_numpy(np.array(values)).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(shape: tuple[int, ...], n: int, d: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns streams and the part of each block's output that does not depend on them, and all parameters."""
    activations = {"streams": 0.5 + draw(*shape, n, d, scale=2.0, seed=1), "output": draw(*shape, d, seed=2)}
    parameters = {}
    for site in "ab":
        values = {
            "weight": draw(n + 2, d, scale=1.5 / d**0.5, seed=ord(site)),
            "norm": 1 + draw(d, scale=0.3, seed=ord(site) + 1),
            "alpha_scale": torch.tensor([0.3]),
            "beta_scale": torch.tensor([0.4]),
            "alpha_bias": torch.eye(n, n + 1) + draw(n, n + 1, scale=0.3, seed=ord(site) + 2),
            "beta_bias": 1 + draw(n, scale=0.2, seed=ord(site) + 3),
        }
        parameters |= {f"{name}_{site}": value.float() for name, value in values.items()}
    return {name: value.to(dtype) for name, value in activations.items()}, parameters


def two_blocks(
    module: ModuleType, values: dict[str, Tensor], kind: str, use_tanh: bool, centered: bool, affine: bool
) -> tuple[Tensor, ...]:
    """Runs a width connection, a block, a boundary, a block and a depth connection; returns all there is to see.

    The kind "given" is "static" with coefficients of its own for each token.
    """

    def static_mix(site: str) -> tuple[Tensor, Tensor]:
        alpha, beta = values[f"alpha_bias_{site}"], values[f"beta_bias_{site}"]
        if kind == "static":
            return alpha, beta
        shift = 0.1 * values["output"][..., :1]
        return alpha + shift.unsqueeze(-1), beta + shift

    def arguments(site: str) -> list[Tensor | bool | float | None]:
        if kind != "dynamic":
            return [static_mix(site)[0]]
        names = ("weight", "norm", "alpha_scale", "beta_scale", "alpha_bias", "beta_bias")
        given = [values[f"{name}_{site}"] if affine or name != "norm" else None for name in names]
        return [*given, use_tanh, 1e-5, centered]

    def mix(site: str, dynamic: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return dynamic or static_mix(site)

    step = module.dynamic_boundary if kind == "dynamic" else module.boundary
    streams, x, *dynamic = step(values["streams"], (), *arguments("a"))
    mix_a = mix("a", tuple(dynamic))
    streams, x_b, *dynamic = step(streams, (torch.sin(x) + values["output"], *mix_a), *arguments("b"))
    mix_b = mix("b", tuple(dynamic))
    return x, streams, x_b, *mix_b, module.depth_connection(streams, torch.sin(x_b), *mix_b)


class Reference:
    """The reference, with boundaries made of its operations."""

    depth_connection = staticmethod(functional_hc.depth_connection)

    @staticmethod
    def boundary(streams: Tensor, unwritten: tuple, alpha: Tensor) -> tuple[Tensor, ...]:
        streams = functional_hc.depth_connection(streams, *unwritten) if unwritten else streams
        return streams, functional_hc.width_connection(streams, alpha)

    @staticmethod
    def dynamic_boundary(streams: Tensor, unwritten: tuple, *arguments: Tensor) -> tuple[Tensor, ...]:
        streams = functional_hc.depth_connection(streams, *unwritten) if unwritten else streams
        return streams, *functional_hc.dynamic_width_connection(streams, *arguments)


def results(
    module: ModuleType | type[Reference],
    activations: dict[str, Tensor],
    parameters: dict[str, Tensor],
    *variant: str | bool,
    wide: bool = False,
) -> list[Tensor]:
    """Returns outputs and gradients, on the CPU in fp64; `wide` computes them in fp64, too."""
    values = {
        name: (value.double() if wide else value).to(DEVICE).detach().requires_grad_()
        for name, value in (activations | parameters).items()
    }
    outputs = two_blocks(module, values, *variant)
    outputs = [output for output in outputs if output.grad_fn]
    dtype = activations["streams"].dtype
    seen = [draw(*output.shape, seed=9).to(dtype).to(output) for output in outputs]
    grads = torch.autograd.grad(outputs, list(values.values()), seen, allow_unused=True)
    return [tensor.detach().cpu().double() for tensor in (*outputs, *grads) if tensor is not None]


VARIANTS = [
    # streams, D, tokens, dtype, connection, tanh, centered, affine
    (4, 64, "ragged", torch.float32, "dynamic", True, False, True),
    (4, 64, "one token", torch.float32, "dynamic", True, True, False),
    (4, 160, "batch", torch.bfloat16, "dynamic", True, True, True),
    (4, 384, "ragged", torch.float16, "dynamic", True, False, True),
    (3, 48, "ragged", torch.float32, "dynamic", False, True, True),
    (3, 384, "one token", torch.bfloat16, "dynamic", True, False, False),
    (2, 300, "ragged", torch.float32, "dynamic", True, True, True),
    (1, 64, "batch", torch.float32, "dynamic", True, False, True),
    (8, 80, "ragged", torch.float32, "dynamic", True, False, True),
    (2, 200, "batch", torch.float32, "static", True, False, True),
    (4, 64, "ragged", torch.bfloat16, "static", True, False, True),
    (4, 64, "batch", torch.bfloat16, "given", True, False, True),
    (3, 200, "ragged", torch.float32, "given", True, False, True),
    (8, 96, "one token", torch.float16, "static", True, False, True),
    (2, 3072, "one token", torch.bfloat16, "dynamic", True, True, True),
    (1, 8192, "one token", torch.float16, "dynamic", True, False, True),
    (4, 8192, "one token", torch.bfloat16, "static", True, False, True),
    pytest.param(4, 3072, "ragged", torch.float32, "dynamic", True, True, True, marks=pytest.mark.slow),
    pytest.param(8, 8192, "one token", torch.bfloat16, "dynamic", True, False, True, marks=pytest.mark.slow),
    pytest.param(8, 8192, "one token", torch.float32, "dynamic", True, True, True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("n, d, tokens, dtype, kind, use_tanh, centered, affine", VARIANTS)
def test_outputs_and_every_gradient_are_as_near_to_fp64_as_the_reference_s(
    n: int, d: int, tokens: str, dtype: torch.dtype, kind: str, use_tanh: bool, centered: bool, affine: bool
) -> None:
    values = problem(SHAPES[tokens], n, d, dtype)
    variant = kind, use_tanh, centered, affine

    exact = results(Reference, *values, *variant, wide=True)
    plain = results(Reference, *values, *variant)
    ours = results(triton_hc, *values, *variant)

    assert len(ours) == len(exact)
    for number, (want, reference, got) in enumerate(zip(exact, plain, ours, strict=True)):
        # A gate's gradient is one number, a sum whose terms cancel: the reference may be near to it by chance. Half a
        # unit of the streams' dtype is what rounding one of them does.
        single = max(128 * torch.finfo(torch.float32).eps, torch.finfo(dtype).eps / 2)
        floor = (8 * torch.finfo(torch.float32).eps if want.numel() > 1 else single) * want.abs().max()
        assert (got - want).abs().max() <= 2 * (reference - want).abs().max() + floor, number


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_boundary_has_the_streams_of_a_depth_connection_bit_for_bit(dtype: torch.dtype) -> None:
    """Block recompute rebuilds with one what the other had made, and coefficients come from rounded streams."""
    activations, parameters = problem((9,), 4, 96, dtype)
    streams, output = (value.to(DEVICE) for value in activations.values())
    sites = {name: value.to(DEVICE) for name, value in parameters.items()}
    names = ("weight", "norm", "alpha_scale", "beta_scale", "alpha_bias", "beta_bias")
    arguments = [*(sites[f"{name}_b"] for name in names), True, 1e-5, True]
    mix = sites["alpha_bias_a"], sites["beta_bias_a"]

    alone = triton_hc.depth_connection(streams, output, *mix)
    static = triton_hc.boundary(streams, (output, *mix), sites["alpha_bias_b"])
    dynamic = triton_hc.dynamic_boundary(streams, (output, *mix), *arguments)

    assert torch.equal(static[0], alone)
    assert torch.equal(static[1], triton_hc.width_connection(alone, sites["alpha_bias_b"]))
    assert torch.equal(dynamic[0], alone)
    for together, apart in zip(dynamic[2:], triton_hc.dynamic_width_connection(alone, *arguments)[1:], strict=True):
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_inputs_and_gradients_need_not_be_contiguous() -> None:
    activations, parameters = problem((3, 5), 2, 64, torch.float32)
    strided = dict(activations)
    strided["streams"] = activations["streams"].transpose(0, 1).contiguous().transpose(0, 1)
    strided["output"] = torch.stack([activations["output"]] * 2, dim=-1)[..., 0]
    parameters["weight_a"] = parameters["weight_a"].mT.contiguous().mT
    variant = "dynamic", True, True, True

    for want, got in zip(
        results(triton_hc, activations, parameters, *variant),
        results(triton_hc, strided, parameters, *variant),
        strict=True,
    ):
        assert torch.equal(got, want)

    expanded = torch.ones(5, 1, 64, device=DEVICE).expand(5, 2, 64).requires_grad_()
    written = triton_hc.depth_connection(
        expanded, torch.ones(5, 64, device=DEVICE), torch.ones(2, 3, device=DEVICE), torch.ones(2, device=DEVICE)
    )
    written.sum().backward()
    assert written.eq(3).all() and expanded.grad.eq(2).all()


@pytest.mark.parametrize("unwritten", (False, True))
def test_each_token_can_be_read_with_an_alpha_of_its_own(unwritten: bool) -> None:
    """As the connections need it whose coefficients come from all streams at once."""
    n, d, shape = 3, 48, (2, 5)
    values = [
        draw(*shape, n, d),
        draw(*shape, n, n + 1, seed=1),
        draw(*shape, d, seed=2),
        *(draw(*shape, n, n + 1), draw(*shape, n)),
    ]

    def run(module: ModuleType | type[Reference], dtype: torch.dtype) -> list[Tensor]:
        streams, alpha, *before = (value.to(dtype).to(DEVICE).requires_grad_() for value in values)
        outputs = module.boundary(streams, tuple(before) if unwritten else (), alpha)
        loss = sum((output * draw(*output.shape, seed=3).to(output)).sum() for output in outputs)
        grads = torch.autograd.grad(loss, [streams, alpha, *(before if unwritten else ())])
        return [tensor.detach().cpu().double() for tensor in (*outputs, *grads)]

    for want, got in zip(run(Reference, torch.float64), run(triton_hc, torch.float32), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * want.abs().max().item())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", JOINT)
def test_a_connection_of_all_streams_is_as_near_to_fp64_with_kernels_as_without(name: str, dtype: torch.dtype) -> None:
    n, d, shape = 4, 64, (3, 7)
    activations = [draw(*shape, n, d, scale=2), draw(*shape, d, seed=1)]
    mix = [torch.eye(n, n + 1) + draw(*shape, n, n + 1, scale=0.3, seed=2), draw(*shape, n, seed=3)]
    connection = CONNECTIONS[name](n, d, block_index=1)
    parameters = {k: v.detach() + 0.5 * draw(*v.shape, seed=4) for k, v in connection.named_parameters()}
    parameters = {k: v.float().double() for k, v in parameters.items()}
    inputs = [*(a.to(dtype).double() for a in activations), *(m.float().double() for m in mix), *parameters.values()]

    def run(how: str) -> list[Tensor]:
        wide = how == "fp64"
        dtypes = [torch.float64] * len(inputs) if wide else [dtype] * 2 + [torch.float32] * (len(inputs) - 2)
        values = [i.to(DEVICE, t).requires_grad_() for i, t in zip(inputs, dtypes, strict=True)]
        if wide:
            streams = variants_math.depth(*values[:4])
            coefficients = variants_math.coefficients(name, streams, dict(zip(parameters, values[4:], strict=True)))
            outputs = streams, variants_math.width(streams, coefficients[0]), *coefficients
        else:
            with dispatch_hc.kernels(how):
                module = connection.to(DEVICE)
                given = dict(zip(parameters, values[4:], strict=True))
                outputs = torch.func.functional_call(module, given, tuple(values[:4]))
        seen = [draw(*output.shape, seed=9).to(dtype).to(output) for output in outputs]
        grads = torch.autograd.grad([o for o in outputs if o.requires_grad], values, seen)
        return [tensor.detach().cpu().double() for tensor in (*outputs, *grads)]

    exact, plain, ours = run("fp64"), run("reference"), run("triton")
    for number, (want, reference, got) in enumerate(zip(exact, plain, ours, strict=True)):
        floor = 8 * torch.finfo(torch.float32).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (reference - want).abs().max() + floor, number


@pytest.mark.parametrize("connection", ("static", "mhc"))
def test_a_layer_moves_as_many_numbers_as_the_table_says(
    connection: str, monkeypatch: pytest.MonkeyPatch, with_kernels: None
) -> None:
    """Counted from what the kernels are given: a layer is two boundaries, and no half of one; where the coefficients
    come from all streams at once, it is both halves of each."""
    n, d, tokens = 4, 64, 6
    moved = []

    class Counted:
        def __init__(self, kernel: object) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            def launch(*arguments: object, **sizes: object) -> None:
                tensors = {id(a): a.numel() // (tokens * d) for a in arguments if isinstance(a, Tensor) and a.ndim > 1}
                moved.append(sum(count for key, count in tensors.items()))
                self.kernel[grid](*arguments, **sizes)

            return launch

    for name in ("_forward_kernel", "_backward_kernel"):
        monkeypatch.setattr(triton_hc, name, Counted(getattr(triton_hc, name)))
    per_layer = []
    for layers in (1, 3):
        model = llama(connection, num_hidden_layers=layers, hidden_size=d, num_streams=n)
        ids = torch.arange(tokens, device=DEVICE)[None]
        moved.clear()
        model(ids, labels=ids, use_cache=False).loss.backward()
        per_layer.append(sum(moved))
    steps = [(True, True)] if connection == "static" else [(True, False), (False, True)]
    assert per_layer[1] - per_layer[0] == 2 * 2 * sum(sum(triton_hc.traffic(n, *step)) for step in steps)
    assert triton_hc.traffic(n, True, True) == (10, 15)  # the least that streams in memory allow, for four of them


def test_no_tokens_are_no_trouble() -> None:
    for kind in ("static", "dynamic"):
        for got in results(triton_hc, *problem((0,), 2, 64, torch.float32), kind, True, True, True):
            assert not got.any()


def test_the_norm_is_exact_where_the_mean_is_large() -> None:
    """mean(h^2) - mean(h)^2 would lose every digit here."""
    streams = (100 + draw(3, 2, 384, scale=0.1)).float()
    weight = draw(4, 384, seed=1).float()
    want = nn.functional.layer_norm(streams.double(), (384,), eps=1e-5) @ weight.double().mT
    one, zeros = torch.ones(1, device=DEVICE), torch.zeros(2, 3, device=DEVICE)
    _, alpha, beta = triton_hc.dynamic_width_connection(
        streams.to(DEVICE), weight.to(DEVICE), None, one, one, zeros, zeros[:, 0], False, 1e-5, True
    )
    got = torch.cat([alpha, beta.unsqueeze(-1)], dim=-1).cpu().double()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


def test_tanh_is_exact_to_a_few_units_in_the_last_place() -> None:
    """Small arguments included, where most formulas cancel."""
    projected = torch.cat([torch.logspace(-6, 1.2, 128), -torch.logspace(-6, 1.2, 128)]).to(DEVICE)
    streams = projected[:, None, None].expand(-1, 1, 16).contiguous()
    weight = torch.zeros(3, 16, device=DEVICE)
    weight[2, 3] = 1
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, 2, device=DEVICE)
    eps = 1e12  # rstd is 1e-6, so that tokens keep their sizes
    _, _, beta = triton_hc.dynamic_width_connection(
        streams, weight * 1e6, None, one, one, zero, zero[:, 0], True, eps, False
    )
    torch.testing.assert_close(beta[:, 0].double(), projected.double().tanh(), rtol=2e-6, atol=0)


def test_what_cannot_be_served_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for streams, reason in (
        (torch.zeros(2, 4, 64, dtype=torch.float64), "torch.float64"),
        (torch.zeros(2, 9, 64), "up to 8 streams, not 9"),
    ):
        streams, alpha = streams.to(DEVICE), torch.zeros(streams.shape[1], streams.shape[1] + 1, device=DEVICE)
        with pytest.raises(ValueError, match=reason):
            triton_hc.width_connection(streams, alpha)
        monkeypatch.setattr(dispatch_hc, "KERNELS", "triton")
        with pytest.raises(ValueError, match=reason):
            dispatch_hc.boundary(streams, (), alpha)
        monkeypatch.setattr(dispatch_hc, "KERNELS", "auto")
        assert not dispatch_hc.boundary(streams, (), alpha)[1].any()


def test_streams_on_a_cpu_are_rejected_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_hc, "KERNELS", "triton")
    monkeypatch.setattr(triton_hc, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"need an NVIDIA GPU .* the streams are on cpu.* MODELING_HC_KERNELS=auto"):
        dispatch_hc.boundary(torch.zeros(2, 4, 64), (), torch.zeros(4, 5))


def test_what_does_not_fit_the_streams_is_rejected_before_it_is_read() -> None:
    """The kernels know the sizes of the streams only, and would read beyond the end of anything smaller."""
    activations, parameters = problem((6,), 4, 64, torch.float32)
    streams, output = (value.to(DEVICE) for value in activations.values())
    alpha, beta, weight = (parameters[f"{name}_a"].to(DEVICE) for name in ("alpha_bias", "beta_bias", "weight"))
    one = torch.ones(1, device=DEVICE)
    rest = one, one, alpha, beta, True, 1e-5, True
    for call, words in (
        (lambda: triton_hc.boundary(streams, (), alpha[:2, :3]), r"alpha .*of \[4, 5\] there; it is \[2, 3\]"),
        (lambda: triton_hc.depth_connection(streams, output[:3], alpha, beta), r"output of \[6, 64\]"),
        (lambda: triton_hc.depth_connection(streams, output, alpha, beta[:3]), r"beta of \[4\]"),
        (lambda: triton_hc.dynamic_boundary(streams, (), weight[:, :32], None, *rest), r"weight of \[6, 64\]"),
        (lambda: triton_hc.boundary(streams, (), alpha.to("meta")), "on meta"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_second_derivative_is_an_error_and_not_a_wrong_number() -> None:
    streams = torch.randn(3, 2, 64, device=DEVICE, requires_grad=True)
    block_input = triton_hc.width_connection(streams, torch.ones(2, 3, device=DEVICE))
    (first,) = torch.autograd.grad(block_input.square().sum(), streams, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.square().sum().backward()


def test_a_choice_that_is_unknown_ends_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELING_HC_KERNELS", "fast")
    found = dispatch_hc.__spec__
    with pytest.raises(ValueError, match="MODELING_HC_KERNELS is auto, reference or triton, not 'fast'"):
        found.loader.exec_module(module_from_spec(found))


def test_a_demand_for_kernels_without_triton_ends_at_import() -> None:
    code = "import sys; sys.modules.update(triton=None); import modeling_hc.dispatch_hc"
    environment = os.environ | {"MODELING_HC_KERNELS": "triton"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode and "need Triton" in done.stderr


def test_the_operators_keep_torch_s_contract_for_compilers() -> None:
    """Their schemas hold, and they promise, without running, the shapes and strides that they return."""
    n, d = 2, 64
    streams, output = torch.randn(5, n, d, device=DEVICE), torch.randn(5, d, device=DEVICE)
    alpha, beta, one = (torch.randn(*s, device=DEVICE) for s in ((5, n, n + 1), (5, n), (1,)))
    weight, saved = torch.randn(n + 2, d, device=DEVICE), torch.randn(5, 3, 8, device=DEVICE)
    before, nothing = (streams, output, alpha, beta), (None,) * 3
    checks = ("test_schema", "test_faketensor")
    for given in (before, (streams, *nothing)):
        for new in (
            (weight, one, one, alpha[0], beta[0]),
            *((*nothing, read, None) for read in (alpha[:1], alpha, None)),
        ):
            torch.library.opcheck(triton_hc._forward, (*given, *new, True, 1e-5, True), test_utils=checks)
        for new, grads in (
            ((weight, one, one, alpha, saved), (streams, output, alpha, beta)),
            ((*nothing, alpha[:1], None), (streams, output, None, None)),
            ((*nothing, alpha, None), (streams, output, None, None)),
            ((*nothing, None, None), (streams, *nothing)),
        ):
            torch.library.opcheck(triton_hc._backward, (*given, *new, *grads, True, True), test_utils=checks)


def test_a_compiled_model_of_any_length_is_the_eager_one_without_graph_breaks() -> None:
    torch.use_deterministic_algorithms(False)
    compiled = torch.compile(two_blocks, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((7,), (5,)):
        activations, parameters = problem(shape, 3, 48, torch.float32)
        values = {k: v.to(DEVICE).requires_grad_() for k, v in (activations | parameters).items()}

        def run(function: object, values: dict[str, Tensor] = values) -> list[Tensor]:
            outputs = function(triton_hc, values, "dynamic", True, True, True)
            loss = sum(output.square().sum() for output in outputs)
            return [*outputs, *torch.autograd.grad(loss, list(values.values()))]

        for want, got in zip(run(two_blocks), run(compiled), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def llama(connection: str, seed: int = 0, **fields: int) -> HCLlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_streams": 2} | fields
    config = HCLlamaConfig(**sizes, vocab_size=20, connection=connection, tie_word_embeddings=False)
    return HCLlamaForCausalLM(config).to(DEVICE)


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_hc, "KERNELS", "triton")
    if triton_hc.INTERPRETED:
        monkeypatch.setattr(triton_hc, "ROWS", 32)  # fewer, larger programs: an interpreter's time is per operation


@pytest.mark.parametrize("connection", ("static", "dynamic", "mhc", "frac"))
def test_checkpointing_and_autocast_change_nothing_but_memory_and_precision(
    connection: str, with_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(False)
    model = llama(connection, num_hidden_layers=2).train()
    ids = torch.arange(20, device=DEVICE).reshape(2, 10)

    def gradients(autocast: bool = False) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            model(ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    want = gradients()
    mixed = gradients(autocast=True)
    model.enable_input_require_grads()
    for reentrant in (False, True):
        checkpoint_activations(model, use_reentrant=reentrant)
        for plain, checkpointed in zip(want, gradients(), strict=True):
            torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)
    checkpoint_activations(model, enable=False)
    monkeypatch.setattr(dispatch_hc, "KERNELS", "reference")
    for plain, reference in zip(want, gradients(), strict=True):
        torch.testing.assert_close(plain, reference, rtol=1e-3, atol=1e-6)
    for half, reference in zip(mixed, gradients(autocast=True), strict=True):
        torch.testing.assert_close(half, reference, rtol=0.05, atol=0.01 * reference.abs().max().item() + 1e-6)


@pytest.mark.parametrize("connection", ("static", "dynamic", *JOINT))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_recomputed_streams_are_rebuilt_by_a_kernel_with_every_gradient_to_the_last_bit(
    connection: str, dtype: torch.dtype, with_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(connection, num_hidden_layers=2).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_hc." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype)
    ids = torch.arange(20, device=DEVICE).reshape(2, 10)
    launched = []
    depth_connection = dispatch_hc.fused_depth_connection
    monkeypatch.setattr(
        dispatch_hc, "fused_depth_connection", lambda *args: (launched.append(args), depth_connection(*args))[1]
    )

    def gradients() -> list[Tensor]:
        launched.clear()
        model.zero_grad()
        outputs = model(ids, labels=ids, use_cache=False)
        outputs.loss.backward()
        return [outputs.logits.detach(), *(parameter.grad for parameter in model.parameters())]

    want = gradients()
    halves = 4 if connection in JOINT else 1  # of a boundary; the last comes before the final norm
    assert len(launched) == halves
    model.recompute_streams(4)
    for kept, recomputed in zip(want, gradients(), strict=True):
        assert torch.equal(kept, recomputed)
    assert len(launched) == halves + 3  # of the streams of four sites, the first were kept


@pytest.mark.parametrize(
    "connection, backend",
    [
        *((connection, "aot_eager") for connection in ("dynamic", *JOINT)),
        *(pytest.param(connection, "inductor", marks=pytest.mark.slow) for connection in ("dynamic", "kromhc")),
    ],
)
def test_a_compiled_model_with_kernels_is_the_eager_one(connection: str, backend: str, with_kernels: None) -> None:
    torch.use_deterministic_algorithms(False)
    model = llama(connection)
    ids = torch.arange(12, device=DEVICE).reshape(2, 6)

    def gradients(step: nn.Module) -> list[Tensor]:
        model.zero_grad()
        loss = step(ids, labels=ids, use_cache=False).loss
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    want = gradients(model)
    for eager, compiled in zip(want, gradients(torch.compile(model, fullgraph=True, backend=backend)), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_training_curve_with_kernels_is_the_one_without(with_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far nearer than another seed would be."""
    torch.use_deterministic_algorithms(False)

    def curve(seed: int) -> Tensor:
        model = llama("dynamic", seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        generator, losses = torch.Generator().manual_seed(5), []
        for _ in range(200):
            start = torch.randint(20, (2, 1), generator=generator)
            ids = ((start + torch.arange(16)) % 20).to(DEVICE)
            loss = model(ids, labels=ids, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    ours = curve(seed=0)
    monkeypatch.setattr(dispatch_hc, "KERNELS", "reference")
    plain, other = curve(seed=0), curve(seed=1)

    assert plain[-20:].mean() < 0.5 * plain[:5].mean()
    assert (ours - plain).abs().mean() < 0.05 * (other - plain).abs().mean()


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_and_spill_no_registers_up_to_four_streams() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "campaigns.compiled_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["n"] for kernel in kernels} == {1, 2, 3, 4, 8}
    assert [kernel for kernel in kernels if kernel["n"] <= 4 and kernel["stack"]] == []


@pytest.mark.gpu
def test_gradients_have_the_same_bits_in_every_run() -> None:
    """Weight gradients, too, of more tokens than programs can take at once."""
    values = problem((10_007,), 4, 384, torch.bfloat16)
    first, *others = (results(triton_hc, *values, "dynamic", True, True, True) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
@torch.no_grad()
def test_offsets_pass_two_to_the_31() -> None:
    n, d = 4, 2048
    tokens = 2**31 // (n * d) + 5
    streams = torch.zeros(tokens, n, d, dtype=torch.bfloat16, device="cuda")
    streams[-1] = 1
    alpha, beta = torch.ones(n, n + 1, device="cuda"), torch.ones(n, device="cuda")
    new, block_input = triton_hc.boundary(streams, (streams[:, 0], alpha, beta), alpha)
    assert new[-1].eq(n + 1).all() and block_input[-1].eq(n * (n + 1)).all() and not new[:-1].any()
