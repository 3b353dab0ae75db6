# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The mathematics against a loop-by-loop fp64 transcription of the paper's equations, and against section 3.2."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_hc import (
    DynamicHyperConnection,
    HCLlamaConfig,
    HCLlamaForCausalLM,
    HCLlamaModel,
    StaticHyperConnection,
    autograd_hc,
    dispatch_hc,
    functional_hc,
)

IMPLEMENTATIONS = {"reference": functional_hc, "by_hand": autograd_hc}
STREAMS = (1, 2, 3, 4, 8)


def draw(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_norm(stream, weight, eps, centered):
    """Eq. 10 for one stream, a list of numbers."""
    mean = sum(stream) / len(stream) if centered else 0.0
    rms = math.sqrt(sum((h - mean) ** 2 for h in stream) / len(stream) + eps)
    return [(h - mean) / rms * w for h, w in zip(stream, weight, strict=True)]


def paper_hyper_connection(streams, block, static, dynamic=None):
    """Eq. 2-5 and 11-13 for one token, in loops over numbers.

    streams: N lists of D. static: B [N], A_m [N], A_r [N][N] with A_r[i][j] from stream i to stream j.
    dynamic: W_beta [D], W_m [D], W_r [D][N], s_alpha, s_beta, squash, norm (a function of one stream).
    """
    n, d = len(streams), len(streams[0])
    write, read, carry = ([*static["B"]], [*static["A_m"]], [[*row] for row in static["A_r"]])
    if dynamic:
        for i in range(n):
            h = dynamic["norm"](streams[i])
            dot = lambda column, h=h: sum(h[c] * column[c] for c in range(d))  # noqa: E731
            write[i] += dynamic["s_beta"] * dynamic["squash"](dot(dynamic["W_beta"]))
            read[i] += dynamic["s_alpha"] * dynamic["squash"](dot(dynamic["W_m"]))
            for j in range(n):
                carry[i][j] += dynamic["s_alpha"] * dynamic["squash"](dot([row[j] for row in dynamic["W_r"]]))
    block_input = [sum(read[i] * streams[i][c] for i in range(n)) for c in range(d)]
    output = block(block_input)
    return [
        [sum(carry[i][j] * streams[i][c] for i in range(n)) + write[j] * output[c] for c in range(d)] for j in range(n)
    ]


def connection(kind, n, d, norm="rms", use_tanh=True):
    """A connection with no parameter at its initial value, and the same numbers in the paper's letters."""
    if kind == "static":
        module = StaticHyperConnection(n, d, block_index=0)
    else:
        module = DynamicHyperConnection(n, d, 0, use_tanh, **NORMS[norm])
    module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(draw(*parameter.shape, scale=0.5, seed=i))
    alpha, beta = module.alpha_bias.tolist(), module.beta_bias.tolist()
    static = {"B": beta, "A_m": [row[0] for row in alpha], "A_r": [row[1:] for row in alpha]}
    dynamic = None
    if kind == "dynamic":
        weight = module.norm.tolist() if module.affine else [1.0] * d
        columns = module.alpha_weight.T.tolist()
        dynamic = {
            "W_beta": module.beta_weight.tolist(),
            "W_m": [row[0] for row in columns],
            "W_r": [row[1:] for row in columns],
            "s_alpha": module.alpha_scale.item(),
            "s_beta": module.beta_scale.item(),
            "squash": math.tanh if use_tanh else float,
            "norm": lambda h: paper_norm(h, weight, module.eps, module.centered),
        }
    return module, static, dynamic


NORMS = {
    "rms": {"eps": 1e-6},
    "rms without weight": {"eps": 1e-5, "affine": False},
    "layer": {"eps": 1e-5, "centered": True},
    "layer without weight": {"eps": 1e-3, "centered": True, "affine": False},
}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    """Runs the modules on one implementation, whatever the dispatcher would choose."""
    module = IMPLEMENTATIONS[request.param]
    run_on(module, monkeypatch)
    return module


def run_on(module, monkeypatch):
    for operation in ("dynamic_width_connection", "width_connection"):
        monkeypatch.setattr(f"modeling_hc.dispatch_hc.{operation}", getattr(module, operation))
    monkeypatch.setattr("modeling_hc.dispatch_hc.unfused_depth_connection", module.depth_connection)


VARIANTS = [("static", None, True)] + [("dynamic", norm, use_tanh) for norm in NORMS for use_tanh in (True, False)]


@pytest.mark.parametrize("kind, norm, use_tanh", VARIANTS)
@pytest.mark.parametrize("n", STREAMS)
def test_a_block_equals_the_paper_s_equations_written_as_loops(implementation, n, kind, norm, use_tanh):
    d = 6
    module, static, dynamic = connection(kind, n, d, norm, use_tanh)
    matrix = draw(d, d, seed=7)
    streams = draw(2, 3, n, d, seed=8) + 0.3

    _, block_input, alpha, beta = module(streams)
    output = torch.sin(block_input @ matrix)
    got = implementation.depth_connection(streams, output, alpha, beta)

    def block(x):
        return [math.sin(sum(x[i] * matrix[i, j].item() for i in range(d))) for j in range(d)]

    for b in range(2):
        for s in range(3):
            want = paper_hyper_connection(streams[b, s].tolist(), block, static, dynamic)
            torch.testing.assert_close(got[b, s], torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, norm, use_tanh", VARIANTS)
@pytest.mark.parametrize("n", (1, 3))
def test_the_hand_written_backward_is_the_derivative(n, kind, norm, use_tanh, monkeypatch):
    run_on(autograd_hc, monkeypatch)
    d = 5
    module, _, _ = connection(kind, n, d, norm, use_tanh)
    names = [name for name, _ in module.named_parameters()]

    def site(streams, output, *parameters):
        named = dict(zip(names, parameters, strict=True))
        streams, block_input, alpha, beta = torch.func.functional_call(module, named, streams)
        return block_input, alpha, autograd_hc.depth_connection(streams, output + block_input, alpha, beta)

    inputs = [draw(1, n, d, seed=1), draw(1, d, seed=2), *(p.detach().clone() for p in module.parameters())]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(site, inputs)
    assert torch.autograd.gradgradcheck(site, inputs)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("shape", ((1, 1), (3, 21), (2, 500)))
def test_gradients_are_as_near_to_fp64_as_the_reference_s(shape, dtype):
    n, d = 4, 64
    module, _, _ = connection("dynamic", n, d)
    streams, output = draw(*shape, n, d, scale=3.0, seed=1).to(dtype), draw(*shape, d, scale=3.0, seed=2).to(dtype)
    cotangents = draw(*shape, d, seed=3).to(dtype), draw(*shape, n, d, seed=4).to(dtype)

    def gradients(implementation, cast):
        parameters = [p.detach().to(cast(torch.float32)).requires_grad_() for p in module.parameters()]
        named = dict(zip((name for name, _ in module.named_parameters()), parameters, strict=True))
        h, y = streams.to(cast(dtype)).requires_grad_(), output.to(cast(dtype)).requires_grad_()
        weight = torch.cat([named["alpha_weight"], named["beta_weight"][None]])
        static = [named[name] for name in ("alpha_scale", "beta_scale", "alpha_bias", "beta_bias")]
        x, alpha, beta = implementation.dynamic_width_connection(h, weight, named["norm"], *static, True, 1e-6, False)
        outputs = x, implementation.depth_connection(h, y, alpha, beta)
        upstream = [cotangent.to(cast(dtype)) for cotangent in cotangents]
        return [t.double() for t in (*outputs, *torch.autograd.grad(outputs, [h, y, *parameters], upstream))]

    exact = gradients(functional_hc, lambda _: torch.float64)
    plain = gradients(functional_hc, lambda kept: kept)
    by_hand = gradients(autograd_hc, lambda kept: kept)
    for want, reference, got in zip(exact, plain, by_hand, strict=True):
        terms = 128 if want.numel() == 1 else 8  # a gate's gradient is one sum, which cancels
        floor = terms * torch.finfo(torch.float32).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (reference - want).abs().max() + floor


def test_the_norm_is_exact_where_the_mean_is_large():
    """mean(h^2) - mean(h)^2 would lose every digit here."""
    streams = (100 + draw(1, 2, 64, scale=0.1)).float()
    weight = draw(4, 64, seed=1)
    want = nn.functional.layer_norm(streams.double(), (64,), eps=1e-5) @ weight.T
    one, zeros = torch.ones(1), torch.zeros(2, 3)
    for implementation in IMPLEMENTATIONS.values():
        _, alpha, beta = implementation.dynamic_width_connection(
            streams, weight.float(), None, one, one, zeros, zeros[:, 0], False, 1e-5, True
        )
        got = torch.cat([alpha, beta.unsqueeze(-1)], dim=-1)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=0.02 * want.abs().max().item())


def test_carry_weights_go_from_row_to_column():
    """A matrix that only moves stream 0 to stream 1 tells A_r from its transpose; the identity would not."""
    alpha, beta = torch.zeros(2, 3), torch.zeros(2)
    alpha[0, 1 + 1] = 1.0
    streams = torch.tensor([[1.0, 1.0], [5.0, 5.0]])
    for implementation in IMPLEMENTATIONS.values():
        moved = implementation.depth_connection(streams, torch.zeros(2), alpha, beta)
        assert moved.tolist() == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("n", STREAMS)
def test_initial_values_are_those_of_equation_14_and_algorithm_2(n):
    module = DynamicHyperConnection(n, 6, block_index=n + 1)
    read = [1.0 if i == (n + 1) % n else 0.0 for i in range(n)]
    assert module.alpha_bias[:, 0].tolist() == read
    assert module.alpha_bias[:, 1:].tolist() == [[float(i == j) for j in range(n)] for i in range(n)]
    assert module.beta_bias.tolist() == [1.0] * n
    assert not module.alpha_weight.any() and not module.beta_weight.any()
    assert module.alpha_scale.item() == module.beta_scale.item() == pytest.approx(0.01)
    assert module.alpha_weight.shape == (1 + n, 6) and module.beta_weight.shape == (6,)


@pytest.mark.parametrize("n", STREAMS)
def test_parameter_counts_are_those_of_equations_21_and_25(n):
    d, count = 64, lambda module: sum(p.numel() for p in module.parameters())
    assert count(StaticHyperConnection(n, d, 0)) == n * (n + 2)
    for affine, norm_size in ((True, d), (False, 0)):
        assert count(DynamicHyperConnection(n, d, 0, affine=affine)) == norm_size + d * (n + 2) + n * (n + 2) + 2


def llama(n, **fields):
    """A small double-precision static HC Llama whose residual blocks are at hand as functions of a hidden state."""
    torch.manual_seed(0)
    config = HCLlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, vocab_size=50,
        num_streams=n, connection="static", **fields,
    )  # fmt: skip
    model = HCLlamaModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(10)  # blocks that matter beside the residual
    position = model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(9)[None])
    mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    blocks = []
    for layer in model.layers:
        attention = {"position_embeddings": position, "attention_mask": mask}
        blocks.append(lambda h, la=layer, kw=attention: la.self_attn(hidden_states=la.input_layernorm(h), **kw)[0])
        blocks.append(lambda h, la=layer: la.mlp(la.post_attention_layernorm(h)))
    return model, blocks, torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))


def set_matrices(model, matrix_of):
    """Sets each block's HC matrix [[0, B], [A_m, A_r]] (Eq. 1); blocks are counted from 1, as in section 3.2."""
    modules = [hc for layer in model.layers for hc in (layer.attn_hc, layer.mlp_hc)]
    with torch.no_grad():
        for k, hc in enumerate(modules, start=1):
            matrix = torch.tensor(matrix_of(k), dtype=torch.float64)
            hc.beta_bias.copy_(matrix[0, 1:])
            hc.alpha_bias.copy_(matrix[1:])


@torch.no_grad()
def test_the_sequential_matrix_of_equation_17_is_the_residual_network():
    model, blocks, ids = llama(2)
    set_matrices(model, lambda k: [[0, 1, 1], [1, 1, 0], [0, 0, 1]])
    h = model.embed_tokens(ids)
    for block in blocks:
        h = h + block(h)
    torch.testing.assert_close(model(ids).last_hidden_state, model.norm(2 * h), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("n", (2, 4))
def test_the_parallel_matrices_of_equations_54_and_55_run_n_blocks_in_parallel(n):
    """Every n blocks read the same h and h becomes the sum of (T_i(h) + h) (Eq. 53).

    Eq. 55 is printed with e_i; Eq. 19, its case n = 2, and Eq. 53 need e_(i+1).
    """

    def matrix(k):
        i = (k - 1) % n
        unit = [float(j == i) for j in range(n)]
        if i == 0:
            return [[0, *unit], *[[1] + [1] * n for _ in range(n)]]
        return [[0, *unit], *[[unit[r], *[float(r == c) for c in range(n)]] for r in range(n)]]

    if n == 2:
        assert matrix(1) == [[0, 1, 0], [1, 1, 1], [1, 1, 1]]  # Eq. 18
        assert matrix(2) == [[0, 0, 1], [0, 1, 0], [1, 0, 1]]  # Eq. 19
    model, blocks, ids = llama(n)
    set_matrices(model, matrix)
    h = n * model.embed_tokens(ids)
    for group in range(len(blocks) // n):
        h = sum(block(h) + h for block in blocks[group * n : (group + 1) * n])
    torch.testing.assert_close(model(ids).last_hidden_state, model.norm(h), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("reduction", ("sum", "mean"))
def test_pre_norm_is_the_matrix_of_equation_15(reduction):
    model, blocks, ids = llama(1, stream_reduction=reduction)
    set_matrices(model, lambda k: [[0, 1], [1, 1]])
    h = model.embed_tokens(ids)
    for block in blocks:
        h = h + block(h)
    torch.testing.assert_close(model(ids).last_hidden_state, model.norm(h), rtol=0, atol=1e-12)


@torch.no_grad()
def test_streams_are_summed_as_in_algorithm_1_or_averaged():
    streams = draw(2, 3, 4, 5)
    want = streams[..., 0, :] + streams[..., 1, :] + streams[..., 2, :] + streams[..., 3, :]
    torch.testing.assert_close(functional_hc.close_streams(streams, "sum"), want)
    torch.testing.assert_close(functional_hc.close_streams(streams, "mean"), want / 4)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_a_coefficient_moves_by_less_than_half_precision_could(implementation, dtype):
    """1 + 2^-10 is 1 in bf16; the streams feel it all the same, because coefficients are fp32."""
    step = 2.0**-10 if dtype == torch.bfloat16 else 2.0**-12
    alpha = torch.tensor([[1.0, 1.0 + step]])
    streams = torch.full((1, 8), 1.0, dtype=dtype)
    output = torch.full((8,), -1.0, dtype=dtype)
    result = implementation.depth_connection(streams, output, alpha, torch.ones(1))
    assert result.dtype == dtype
    assert result.float().flatten().tolist() == [step] * 8


def test_autocast_does_not_touch_the_coefficients(implementation):
    module, _, _ = connection("dynamic", 4, 16)
    module.float()
    streams, output = draw(2, 4, 16).float().requires_grad_(), draw(2, 16, seed=1).float()

    def run(autocast=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            _, block_input, alpha, beta = module(streams)
            h = implementation.depth_connection(streams, output + block_input, alpha, beta)
        return alpha, beta, h, *torch.autograd.grad(h.square().sum(), [streams, *module.parameters()])

    for want, got in zip(run(), run(autocast=True), strict=True):
        assert torch.equal(want, got)


def test_the_backward_pass_keeps_the_streams_once_and_the_block_s_output():
    """(N + 1) D numbers a token, and small change: no normalised, mixed or carried copy of the streams."""
    n, d, tokens = 4, 256, 64
    module = DynamicHyperConnection(n, d, 0)
    streams, output = torch.randn(tokens, n, d, requires_grad=True), torch.randn(tokens, d, requires_grad=True)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        _, block_input, alpha, beta = module(streams)
        dispatch_hc.depth_connection(streams, output + block_input, alpha, beta)
    large = sum(t.numel() for t in kept.values() if t.numel() >= tokens * d)
    small = sum(t.numel() for t in kept.values() if t.numel() < tokens * d) - (n + 2) * d * 2 - d
    assert large == tokens * (n + 1) * d
    assert small <= tokens * 8 * n * (n + 2)


@torch.no_grad()
def test_fp32_coefficients_meet_fp64_streams_in_fp64(implementation):
    """transformers keeps some parameters in fp32 when it loads a model in fp64."""
    module, _, _ = connection("dynamic", 4, 16)
    streams, output = draw(2, 3, 4, 16), draw(2, 3, 16, seed=1)

    def run():
        _, block_input, alpha, beta = module(streams)
        return implementation.depth_connection(streams, output + block_input, alpha, beta)

    exact = run()
    module.float()
    assert run().dtype == torch.float64
    torch.testing.assert_close(run(), exact, rtol=0, atol=1e-6)


def test_compiled_gradients_are_as_near_to_fp64_as_the_eager_reference_s():
    """At magnitudes of a deep network, where a compiled backward pass of others overflowed."""
    n, d = 4, 64
    module, _, _ = connection("dynamic", n, d)
    streams, output = draw(2, 21, n, d, scale=300.0, seed=1), draw(2, 21, d, scale=30.0, seed=2)

    def site(streams, output, weight, norm, *static):
        x, alpha, beta = functional_hc.dynamic_width_connection(streams, weight, norm, *static, True, 1e-6, False)
        return x, functional_hc.depth_connection(streams, output, alpha, beta)

    def gradients(function, dtype):
        named = dict(module.named_parameters())
        weight = torch.cat([named["alpha_weight"], named["beta_weight"][None]])
        names = ("norm", "alpha_scale", "beta_scale", "alpha_bias", "beta_bias")
        inputs = [t.detach().to(dtype).requires_grad_() for t in (streams, output, weight, *map(named.get, names))]
        outputs = function(*inputs)
        return [t.double() for t in torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])]

    exact, plain = gradients(site, torch.float64), gradients(site, torch.float32)
    compiled = gradients(torch.compile(site, fullgraph=True, backend="inductor"), torch.float32)
    for want, reference, got in zip(exact, plain, compiled, strict=True):
        terms = 128 if want.numel() == 1 else 8
        floor = terms * torch.finfo(torch.float32).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (reference - want).abs().max() + floor


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_decoding_takes_the_operations_of_the_reference_which_are_fewer():
    module = connection("dynamic", 4, 64)[0]
    written = draw(1, 1, 4, 64), draw(1, 1, 64), draw(1, 1, 4, 5), draw(1, 1, 4)

    def run(tokens, choice):
        with torch.no_grad(), dispatch_hc.kernels(choice), Operations() as operations:
            outputs = module(*(t.expand(1, tokens, *t.shape[2:]) for t in written))
        return operations.count, outputs

    (decoding, token), (reference, _), (prefill, sequence) = run(1, "auto"), run(1, "reference"), run(2, "auto")
    assert decoding == reference < 0.75 * prefill
    for one, two in zip(token, sequence, strict=True):
        torch.testing.assert_close(one.expand_as(two), two)


def test_two_hundred_steps_by_hand_and_by_autograd_differ_by_less_than_two_seeds(monkeypatch):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = ["a ", "red ", "green ", "bird ", "fish ", "sings ", "swims ", "slowly. "]
    choices = torch.randint(len(words), (8_000,), generator=torch.Generator().manual_seed(0)).tolist()
    text = "".join(words[choice] for choice in choices).encode()
    batches = torch.tensor(list(text[: 200 * 4 * 32])).view(200, 4, 32)

    def curve(module, seed):
        with monkeypatch.context() as patch:
            run_on(module, patch)
            torch.manual_seed(seed)
            model = HCLlamaForCausalLM(HCLlamaConfig(vocab_size=256, **sizes))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            losses = []
            for batch in batches:
                loss = model(input_ids=batch, labels=batch, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return torch.tensor(losses)

    reference, by_hand = curve(functional_hc, seed=0), curve(autograd_hc, seed=0)
    noise = (curve(functional_hc, seed=1) - reference).abs().mean()
    assert reference[-20:].mean() < 0.8 * reference[:20].mean()
    assert (by_hand - reference).abs().mean() < 0.1 * noise
