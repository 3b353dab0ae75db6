# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The bounded variants and frac-connections: mathematics, and what models promise."""

from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import test_modeling_hc_llama
import test_modeling_hc_olmo
import test_modeling_hc_olmoe
import torch
import variants_math
from contract import assert_same_gradients, batch, checkpoint_activations, close, forward_and_backward, generate
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from modeling_hc import HCLlamaConfig, kernels, parameter_groups
from modeling_hc.analysis import measure, record, unfolding_error
from modeling_hc.analysis.recording import connections, hooked
from modeling_hc.benchmark.measurement import memory
from modeling_hc.benchmark.variants import build
from modeling_hc.configuration_hc import HyperConnectionConfigMixin
from modeling_hc.conversion import ConversionError, to_hyper_connected, to_residual
from modeling_hc.functional_hc import depth_connection, sinkhorn, width_connection
from modeling_hc.health import health
from modeling_hc.hyper_connections import CONNECTIONS, HyperConnection, JointHyperConnection

JOINT = [name for name, variant in CONNECTIONS.items() if issubclass(variant, JointHyperConnection)]
VARIANTS = [*JOINT, "frac"]
FAMILIES = {
    "llama": test_modeling_hc_llama.TestHCLlama(),
    "olmo": test_modeling_hc_olmo.TestHCOlmo(),
    "olmoe": test_modeling_hc_olmoe.TestHCOlmoe(),
}
ids = batch()["input_ids"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def away(name: str, n: int, d: int = 6, spread: float = 0.7) -> HyperConnection:
    """A connection in fp64 whose parameters are all away from their initial values."""
    module = CONNECTIONS[name](n, d, block_index=1).double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(spread * draw(*parameter.shape, seed=i))
    return module


# ---- the mathematics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["auto", "reference"])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_boundary_and_its_gradients_equal_the_reference(name: str, n: int, how: str) -> None:
    module, d = away(name, n, spread=3), 6
    slots = n if name == "frac" else 1
    streams, output = draw(2, 3, n, d, seed=8).requires_grad_(), draw(2, 3, slots * d, seed=9).requires_grad_()
    before = [c.requires_grad_() for c in (draw(2, 3, n, slots + n, seed=10), draw(2, 3, n, seed=11))]
    inputs = [streams, output, *before, *module.parameters()]
    with kernels(how):
        found = module(streams, output, *before)
        new = variants_math.depth(streams, output, *before)
        alpha, beta = variants_math.coefficients(name, new, dict(module.named_parameters()))
        expected = [new, variants_math.width(new, alpha), alpha, beta]
        weights = [draw(*t.shape, seed=12) for t in expected]

        gradients, wanted = (
            torch.autograd.grad(sum((w * t).sum() for w, t in zip(weights, results, strict=True)), inputs)
            for results in (found, expected)
        )

    for actual, right in zip([*found, *gradients], [*expected, *wanted], strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-13)
    assert (alpha[..., -n:] - alpha[..., -n:].mT).abs().max() > 0.1 or name in ("identity", "kromhc") or n == 2


@pytest.mark.parametrize("name", JOINT)
def test_what_flows_into_a_stream_sums_to_1_and_out_of_it_up_to_the_iterations(name: str) -> None:
    alpha, _ = away(name, 4, spread=1.5).coefficients(draw(50, 4, 6, seed=3))
    carry = alpha[..., 1:]

    assert (carry.sum(-2) - 1).abs().max() < 1e-14
    assert (carry.sum(-1) - 1).abs().max() < (0.1 if name == "mhc" else 1e-14)
    assert carry.min() >= 0


def test_permutations_come_in_lexicographic_order_from_stream_to_stream() -> None:
    logits = torch.full((6,), -1e3).index_fill_(0, torch.tensor(3), 0)  # 0 to 1, 1 to 2, 2 to 0

    carry = CONNECTIONS["mhc_lite"](3, 6, 0).carry_matrix(logits)

    assert carry.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_the_first_factor_of_a_kronecker_product_is_the_outermost() -> None:
    factors = draw(2, 2)

    carry = CONNECTIONS["kromhc"](4, 6, 0).carry_matrix(factors.flatten())

    expected = torch.kron(*(torch.stack([p, p.flip(-1)]) for p in factors.softmax(-1)))
    torch.testing.assert_close(carry, expected, rtol=0, atol=1e-15)


def test_the_backward_pass_of_mhc_can_be_differentiated_again() -> None:
    module, streams = away("mhc", 2, d=3), draw(1, 2, 2, 3).requires_grad_()

    assert gradcheck(lambda h: module(h)[1:], (streams,))
    assert gradgradcheck(lambda h: module(h)[1:], (streams,))


def test_a_column_of_logits_that_underflows_stays_finite() -> None:
    logits = torch.zeros(1, 16).index_fill_(1, torch.arange(0, 16, 4), -300.0)
    for how in ("auto", "reference"):
        with kernels(how):
            hard = logits.clone().requires_grad_()
            carry = CONNECTIONS["mhc"](4, 6, 0).carry_matrix(hard)
            carry[0, 0, 1].backward()
        assert carry.isfinite().all() and hard.grad.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_connection_does_not_look_at_other_tokens_and_is_fp32_under_autocast(name: str) -> None:
    module, streams = away(name, 4).float(), draw(2, 5, 4, 6).float()
    changed = streams.clone()
    changed[:, 2:] = 1

    with torch.autocast("cpu", torch.bfloat16):
        _, block_input, alpha, beta = module(streams)
        _, other_input, *_ = module(changed)

    assert alpha.dtype == beta.dtype == torch.float32
    assert torch.equal(block_input[:, :2], other_input[:, :2])
    expected = variants_math.coefficients(
        name, streams.double(), {k: v.double() for k, v in module.state_dict().items()}
    )
    torch.testing.assert_close(alpha.double(), expected[0], rtol=0, atol=1e-5)


def test_mhc_keeps_its_logits_and_the_streams_once_for_the_backward_pass() -> None:
    module, streams = CONNECTIONS["mhc"](4, 64, 0), torch.randn(1, 100, 4, 64, requires_grad=True)
    kept: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = sum(p.nbytes for p in module.parameters())
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        outputs = module(streams)  # held, so that no other tensor gets the address of one that is kept

    assert outputs and (sum(kept.values()) - parameters - streams.nbytes) / 100 < 400  # unrolled: 3 kB a token more


@pytest.mark.parametrize("name", VARIANTS)
def test_a_narrow_model_keeps_little_more_for_the_backward_pass_than_the_residual_one(name: str) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4}
    shape |= {"vocab_size": 1024, "max_position_embeddings": 128}
    tokens = torch.arange(256).view(2, 128)

    residual, kept = (
        memory(build(each, shape, torch.float32, "cpu"), tokens)["kept"] for each in ("stock", f"{name}-4")
    )

    assert 1 < kept / residual < (1.25 if name == "frac" else 1.45)


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_streams", [2, 4])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_equals_its_residual_parent(family: str, name: str, num_streams: int) -> None:
    fields = {"connection": name, "num_streams": num_streams, "stream_reduction": "mean", "output_rescaling": "none"}
    model = AutoModelForCausalLM.from_config(FAMILIES[family].config(**fields)).eval()
    parent = AutoModelForCausalLM.from_config(FAMILIES[family].parent_config()).eval()
    parent.load_state_dict({k: v for k, v in model.state_dict().items() if "_hc." not in k}, strict=True)

    assert close(model(**batch()).logits, parent(**batch()).logits, 0 if name == "frac" else 2e-6)


@pytest.mark.parametrize("name", JOINT)
def test_streams_separate_in_training_because_blocks_have_home_streams(name: str) -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"].config(connection=name))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert spread(model) < 1e-6
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    apart = spread(model)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, JointHyperConnection):
                module.reset_parameters()
                module.bias[:4] = torch.logit(torch.tensor(0.25))  # no home
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    assert apart > 1e-4
    assert spread(model) < apart / 100


def spread(model: PreTrainedModel) -> float:
    """How far the streams of a token are from their mean at the end, as a part of it."""
    streams = record(model, ids).streams[-1]
    mean = streams.mean(-2, keepdim=True)
    return ((streams - mean).norm() / mean.norm()).item()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns_with_checkpointing_and_recompute_to_the_last_bit(family: str, name: str) -> None:
    model = FAMILIES[family].trained(connection=name)
    _, expected = forward_and_backward(model)
    assert [key for key, g in expected.items() if "_hc." in key and not (g.any() and g.isfinite().all())] == []

    model.recompute_streams(4)
    _, recomputed = forward_and_backward(model)
    model.recompute_streams(1)
    checkpoint_activations(model, use_reentrant=False)
    _, checkpointed = forward_and_backward(model)

    for gradients in (recomputed, checkpointed):
        assert [key for key, g in gradients.items() if not torch.equal(g, expected[key])] == []


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("family", FAMILIES)
def test_analysis_and_health_are_exact(family: str, name: str) -> None:
    model = FAMILIES[family].trained(connection=name)
    if family == "olmoe":
        model.set_experts_implementation("eager")  # the fast one has no fp64
    measured = measure(model.double(), [ids])
    values = health(model, ids)

    assert unfolding_error(record(model, ids)) < 1e-12
    assert (measured.layers.forward[1:7] - 1).abs().max() < 1e-9  # what flows into a stream sums to 1
    assert values["forward_gain"] == pytest.approx(1)
    assert values["dynamic_size"] > 0.01 and measured.layers.moved[1:7].min() > 0.001


@pytest.mark.parametrize("family", FAMILIES)
def test_the_health_of_fractions_is_that_of_their_carry_and_their_analysis_is_rejected(family: str) -> None:
    model = FAMILIES[family].trained(connection="frac")
    carries: list[Tensor] = []
    with hooked(
        [(site, lambda module, args, output: carries.append(output[2][..., 4:])) for site in connections(model)]
    ):
        model(ids)
    composite = carries[0]
    for carry in carries[1:]:
        composite = composite @ carry
    values = health(model, ids)

    expected = torch.linalg.svdvals(composite)[..., 1].mean().item()
    assert values["second_singular_value"] == pytest.approx(expected, rel=1e-4)
    assert values["forward_gain"] >= composite.abs().sum(-2).amax(-1).mean().item() * (1 - 1e-5)
    with pytest.raises(ValueError, match=r"connection='frac' cannot be analyzed.*health"):
        measure(model, [ids])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_generates_with_a_cache_what_it_does_without_and_after_saving(
    tmp_path: Path, family: str, name: str
) -> None:
    model, prompts = FAMILIES[family].trained(connection=name), batch(left_padding=3)
    expected = generate(model, **prompts, use_cache=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    low = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert torch.equal(generate(model, **prompts), expected)
    assert torch.equal(generate(loaded, **prompts), expected)
    assert {p.dtype for key, p in low.named_parameters() if "_hc." in key} == {torch.float32}
    assert all(torch.equal(p, low.get_parameter(key)) for key, p in model.named_parameters() if "_hc." in key)
    streams = "fractions of the residual stream" if name == "frac" else "residual streams"
    assert f"{CONNECTIONS[name].label}x4 ({name}, 4 {streams})" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_compiled_model_has_the_outputs_and_gradients_of_the_eager_one(name: str) -> None:
    model = FAMILIES["llama"].trained(connection=name, num_hidden_layers=1, sinkhorn_iterations=2)
    logits, gradients = forward_and_backward(model)
    torch._dynamo.reset()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_logits, compiled_gradients = forward_and_backward(model, compiled)

    assert close(compiled_logits, logits)
    assert_same_gradients(compiled_gradients, gradients, 1e-4)


@pytest.mark.parametrize("name", JOINT)
def test_weights_and_gates_decay_and_biases_do_not(tmp_path: Path, name: str) -> None:
    model = FAMILIES["llama"].trained(connection=name)
    trainer = Trainer(model, TrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    decayed, undecayed = ({id(p) for p in group["params"]} for group in parameter_groups(model, weight_decay=0.1))
    split = Counter()
    for key, parameter in model.named_parameters():
        if "_hc." in key:
            split[key.rpartition(".")[2], key in trainer.get_decay_parameter_names(model)] += 1
            assert (key in model.no_weight_decay()) == (id(parameter) in undecayed) != (id(parameter) in decayed)

    assert split == {("weight", True): 6, ("scale", True): 6, ("bias", False): 6}


def test_shapes_are_those_that_deepseek_s_modules_have() -> None:
    sizes = {"mhc": (24, 3), "identity": (8, 2), "mhc_lite": (32, 3), "kromhc": (12, 3)}
    for name, (rows, gates) in sizes.items():
        shapes = {key: list(value.shape) for key, value in CONNECTIONS[name](4, 16, 0).state_dict().items()}
        assert shapes == {"weight": [rows, 64], "bias": [rows], "scale": [gates]}


# ---- the gated reduction --------------------------------------------------------------------------------------------


GATED = {"stream_reduction": "gated"}


@pytest.mark.parametrize("connection", ["dynamic", "mhc"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gated_reduction_starts_as_the_mean_and_every_number_of_it_learns(family: str, connection: str) -> None:
    torch.manual_seed(0)
    mean = AutoModelForCausalLM.from_config(FAMILIES[family].config(connection=connection, stream_reduction="mean"))
    fresh = AutoModelForCausalLM.from_config(FAMILIES[family].config(connection=connection, **GATED))
    missing = fresh.load_state_dict(mean.state_dict(), strict=False).missing_keys
    model = FAMILIES[family].trained(connection=connection, **GATED)
    _, gradients = forward_and_backward(model)
    model.recompute_streams(4)
    _, recomputed = forward_and_backward(model)

    assert missing == [f"model.norm.head_hc.{name}" for name in ("weight", "bias", "scale")]
    assert close(fresh.eval()(ids).logits, mean.eval()(ids).logits, 2e-6)
    assert all(gradients[key].any() for key in missing)
    assert [key for key, g in recomputed.items() if not torch.equal(g, gradients[key])] == []


def test_the_weights_of_a_gated_reduction_equal_the_reference_and_close_the_unfolded_matrix() -> None:
    model = FAMILIES["llama"].trained(connection="mhc", **GATED).double()
    norm, kept = model.model.norm, []
    hook = norm.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    outputs = model(ids, output_hidden_states=True)
    hook.remove()
    recording = record(model, ids)
    closed = variants_math.head(kept[0], dict(norm.head_hc.named_parameters()))
    matrix, _ = recording.unfold()

    torch.testing.assert_close(norm.head_hc(kept[0]), closed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(recording.final, closed, rtol=1e-12, atol=1e-12)
    assert (matrix[..., -1, 1] - matrix[0, 0, -1, 1]).abs().max() > 0.01  # another matrix for every token
    assert unfolding_error(recording) < 1e-12
    assert measure(model, [ids]).layers.contribution.sum() == pytest.approx(1)
    assert {h.shape for h in outputs.hidden_states} == {(2, 12, 32)}


def test_a_gated_model_saves_loads_converts_and_counts_its_head(tmp_path: Path) -> None:
    model = FAMILIES["llama"].trained(**GATED)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    parent = AutoModelForCausalLM.from_config(FAMILIES["llama"].parent_config())
    parent.save_pretrained(tmp_path / "parent")
    to_hyper_connected(tmp_path / "parent", tmp_path / "hc", **GATED)
    to_residual(tmp_path / "hc", tmp_path / "back")

    assert {p.dtype for p in loaded.model.norm.head_hc.parameters()} == {torch.float32}
    assert torch.equal(generate(model, ids), generate(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), ids))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "back")(ids).logits, parent(ids).logits)
    with pytest.raises(ValueError, match=r"head_hc\.bias, for which stream_reduction='mean' has no place"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", stream_reduction="mean")
    with pytest.raises(ConversionError, match="was trained"):
        to_residual(tmp_path / "model", tmp_path / "residual")
    in_connections = sum(p.numel() for key, p in model.named_parameters() if "_hc." in key)
    assert f"of which {in_connections:,} in hyper-connections" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rule_decays_a_gated_reduction_which_is_part_of_the_norm(tmp_path: Path, family: str) -> None:
    model = FAMILIES[family].trained(**GATED)
    trainer = Trainer(model, TrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    head = {f"model.norm.head_hc.{name}" for name in ("weight", "bias", "scale")}
    _, undecayed = ({id(p) for p in group["params"]} for group in parameter_groups(model, weight_decay=0.1))

    assert head.isdisjoint(trainer.get_decay_parameter_names(model))
    assert head <= model.no_weight_decay()
    assert all(id(model.get_parameter(key)) in undecayed for key in head)


def test_one_stream_has_no_gated_reduction() -> None:
    with pytest.raises(ValueError, match=r"num_streams=1 .* 2 or more with stream_reduction='gated'"):
        HCLlamaConfig(num_streams=1, **GATED)


# ---- configurations and checkpoints ---------------------------------------------------------------------------------


def test_every_name_of_the_configuration_is_a_variant_with_its_own_label() -> None:
    assert set(get_args(get_type_hints(HyperConnectionConfigMixin)["connection"])) == set(CONNECTIONS)
    assert len({variant.label for variant in CONNECTIONS.values()}) == len(CONNECTIONS)


@pytest.mark.parametrize(
    "fields, wrong",
    [
        ({"connection": "kromhc", "num_streams": 3}, "num_streams=3 .* a power of 2"),
        ({"connection": "mhc_lite", "num_streams": 5}, "num_streams=5 .* at most 4"),
        ({"connection": "mhc", "num_streams": 1}, "num_streams=1 .* 2 or more"),
        ({"connection": "identity", "use_tanh": False}, "use_tanh=False .* no tanh"),
        ({"connection": "mhc", "sinkhorn_iterations": 0}, "sinkhorn_iterations=0 .* from 1 to 1000"),
        ({"hc_eps": 0.0}, "hc_eps=0.0 .* from 1e-20"),
        ({"connection": "frac", "hidden_size": 64, "num_streams": 3}, "num_streams=3 .* a divisor of hidden_size=64"),
        ({"connection": "frac", "stream_reduction": "gated"}, "stream_reduction='gated' .* 'sum' or 'mean'"),
        ({"gate_init": 0.0}, "gate_init=0.0 .* never learns"),
        ({"gate_init": float("nan")}, "gate_init=nan"),
        ({"gate_init": -1.0}, "gate_init=-1.0 .* from 1e-20 to 1e20"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(fields: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        HCLlamaConfig(**fields)


def test_the_fields_of_the_configuration_reach_every_connection() -> None:
    fields = {"sinkhorn_iterations": 3, "hc_eps": 1e-6, "gate_init": 0.5, "rms_norm_eps": 1e-3}
    mhc = AutoModelForCausalLM.from_config(FAMILIES["llama"].config(connection="mhc", **fields)).model.layers[0].mlp_hc
    dynamic = AutoModelForCausalLM.from_config(FAMILIES["llama"].config(**fields)).model.layers[0].mlp_hc

    assert (mhc.sinkhorn_iterations, mhc.hc_eps, mhc.eps) == (3, 1e-6, 1e-3)
    assert mhc.scale.tolist() == [0.5] * 3 and dynamic.alpha_scale.tolist() == dynamic.beta_scale.tolist() == [0.5]
    logits = draw(16, seed=4)
    assert close(mhc.carry_matrix(logits), sinkhorn(logits, 3, 1e-6), 1e-12)
    assert not close(mhc.carry_matrix(logits), sinkhorn(logits, 20, 1e-6), 1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_residual_checkpoint_is_converted_and_back_and_a_trained_one_is_not(tmp_path: Path, name: str) -> None:
    parent = AutoModelForCausalLM.from_config(FAMILIES["llama"].parent_config())
    parent.save_pretrained(tmp_path / "parent")

    fields = {"connection": name} | ({"stream_reduction": "sum"} if name == "frac" else {})  # which is exact, too
    assert "the outputs differ by" in to_hyper_connected(tmp_path / "parent", tmp_path / "hc", **fields)
    to_residual(tmp_path / "hc", tmp_path / "back")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hc")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")

    assert model.config.connection == name
    assert close(model(ids).logits, parent(ids).logits, 0 if name == "frac" else 2e-6)
    assert torch.equal(back(ids).logits, parent(ids).logits)
    for parameter in ("alpha_weight", "beta_bias") if name == "frac" else ("weight", "bias"):
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "hc")
        with torch.no_grad():
            trained.get_parameter(f"model.layers.1.mlp_hc.{parameter}")[0] += 0.5
        trained.save_pretrained(tmp_path / parameter)
        with pytest.raises(ConversionError, match=f"was trained: model.layers.1.mlp_hc.{parameter} differs"):
            to_residual(tmp_path / parameter, tmp_path / "residual")


def test_a_checkpoint_of_one_variant_does_not_load_as_another(tmp_path: Path) -> None:
    for name in ("mhc", "dynamic"):
        FAMILIES["llama"].trained(connection=name).save_pretrained(tmp_path / name)

    with pytest.raises(ValueError, match="bias, for which connection='dynamic' has no place"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "mhc", connection="dynamic")
    with pytest.raises(ValueError, match="for which connection='mhc' has no place"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "dynamic", connection="mhc")
    with pytest.raises(RuntimeError, match=r"has shape \[4, 5\], .*asks for \[4, 8\]"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "dynamic", connection="frac")
    with pytest.raises(RuntimeError, match=r"has shape \[24.*asks for \[12"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "mhc", connection="kromhc")


def test_reads_and_writes_of_the_functional_reference_are_those_of_the_mathematics() -> None:
    streams, output, alpha, beta = draw(3, 4, 6), draw(3, 6, seed=1), draw(3, 4, 5, seed=2), draw(3, 4, seed=3)

    torch.testing.assert_close(width_connection(streams, alpha), variants_math.width(streams, alpha))
    written = variants_math.depth(streams, output, alpha, beta)
    torch.testing.assert_close(depth_connection(streams, output, alpha, beta), written)


def test_a_gate_may_be_a_whole_number() -> None:
    assert HCLlamaConfig(connection="mhc", gate_init=1).gate_init == 1
