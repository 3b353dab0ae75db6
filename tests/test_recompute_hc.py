# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Block recompute: the same numbers to the last bit, with less kept for the backward pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract import checkpoint_activations
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM, HCOlmoeConfig, HCOlmoeForCausalLM
from modeling_hc.recompute_hc import recomputed

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
IDS = torch.arange(60).view(2, 30) % 64


def model(family: str = "llama", **fields) -> HCLlamaForCausalLM | HCOlmoeForCausalLM:
    """A model whose streams differ from one another, as after training."""
    torch.manual_seed(0)
    if family == "llama":
        net = HCLlamaForCausalLM(HCLlamaConfig(**SIZES | fields))
    else:
        net = HCOlmoeForCausalLM(HCOlmoeConfig(**SIZES | fields, num_experts=4, num_experts_per_tok=2))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "_hc." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.train()


def gradients(net: torch.nn.Module, autocast: bool = False) -> list[Tensor]:
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = net(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in net.parameters())]


def kept(net: torch.nn.Module) -> int:
    """Bytes that a forward pass leaves allocated while its loss can be differentiated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = net(input_ids=IDS, labels=IDS, use_cache=False).loss
    del loss
    return sum(e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")


def assert_identical(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", ["llama", "olmoe"])
@pytest.mark.parametrize("connection", ["static", "dynamic"])
@pytest.mark.parametrize("sites", [None, 2, 5, 8, 100])
def test_recomputed_streams_give_every_gradient_to_the_last_bit(family: str, connection: str, sites: int) -> None:
    net = model(family, connection=connection)
    want = gradients(net)
    net.recompute_streams(sites)
    assert_identical(gradients(net), want)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recompute_is_exact_in_half_precision_and_under_autocast(dtype: torch.dtype, autocast: bool) -> None:
    net = model().to(dtype)
    want = gradients(net, autocast)
    net.recompute_streams()
    assert_identical(gradients(net, autocast), want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recompute_goes_with_gradient_checkpointing_and_keeps_no_more_than_it(reentrant: bool) -> None:
    net = model(hidden_size=256)
    checkpoint_activations(net, use_reentrant=reentrant)
    net.enable_input_require_grads()
    want, checkpointed = gradients(net), kept(net)
    net.recompute_streams()
    assert_identical(gradients(net), want)
    assert kept(net) <= checkpointed * 1.01


def test_of_every_run_of_sites_only_the_first_streams_are_kept() -> None:
    net = model(num_streams=8)
    streams = IDS.numel() * 8 * 32 * 4
    everything = kept(net)
    net.recompute_streams(4)
    assert (everything - kept(net)) / streams == pytest.approx(6, abs=0.5)  # of 8 sites, 2 are kept


def test_a_second_derivative_and_a_second_backward_pass_see_recomputed_streams_too() -> None:
    net = model()
    embeddings = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    net.set_attn_implementation("eager")

    def derivatives() -> list[Tensor]:
        loss = net(inputs_embeds=embeddings, use_cache=False).logits.square().mean()
        (first,) = torch.autograd.grad(loss, embeddings, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), embeddings, retain_graph=True)
        (again,) = torch.autograd.grad(loss, embeddings)
        return [first.detach(), second, again]

    want = derivatives()
    net.recompute_streams(4)
    assert_identical(derivatives(), want)
    assert want[1].abs().max() > 0


def test_fewer_than_one_site_is_rejected() -> None:
    with pytest.raises(ValueError, match="sites is 0"):
        model().recompute_streams(0)


WORKER = """
import importlib.util, sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_recompute_hc import IDS, gradients, model
from modeling_hc import HyperConnection, dispatch_hc
from modeling_hc.hyper_connections import CONNECTIONS
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
torch.set_num_threads(1)


def shard(net, dtype=None):
    for module in (*net.model.layers, net):
        fully_shard(module, mp_policy=MixedPrecisionPolicy(param_dtype=dtype))
    return net


def note(connection, args, output):
    dtypes.update(parameter.dtype for parameter in connection.parameters())


for connection in CONNECTIONS:
    for wrap in ("ddp", "fsdp2", "fsdp2 in bf16"):
        results, dtypes = [], set()
        for sites in (1, 4):
            net = model(connection=connection)
            net.recompute_streams(sites)
            if wrap == "ddp":
                wrapped = DistributedDataParallel(net)
            elif wrap == "fsdp2":
                wrapped = shard(net)
            else:
                net.shard_connections()
                wrapped = shard(net, torch.bfloat16)
            for module in net.modules():
                if isinstance(module, HyperConnection):
                    module.register_forward_hook(note)
            ids = IDS[dist.get_rank() :][:1]
            wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            results.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), (connection, wrap)
        assert dtypes == {{torch.float32}}, (connection, wrap, dtypes)
        assert any(g.abs().max() > 0 for g in results[0])
if importlib.util.find_spec("triton"):
    from modeling_hc import triton_hc

    triton_hc.ROWS = 32  # fewer, larger programs: an interpreter's time is per operation
    for connection in ("static", "dynamic"):
        fields = {{"connection": connection, "num_hidden_layers": 2, "num_streams": 2}}
        dispatch_hc.KERNELS = "reference"
        loss, *want = gradients(model(**fields))
        dispatch_hc.KERNELS = "triton"
        for sites in (1, 4):
            net = model(**fields)
            net.recompute_streams(sites)
            ids = IDS[dist.get_rank() :][:1]
            shard(net)(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            for (name, parameter), gradient in zip(net.named_parameters(), want, strict=True):
                got = parameter.grad.full_tensor()
                torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-5, msg=lambda m: name + m)
dist.destroy_process_group()
"""


def test_recompute_is_exact_in_two_processes_under_ddp_and_fsdp2_and_kernels_agree_there(tmp_path: Path) -> None:
    """The kernels run in Triton's interpreter, sharded, and are compared with the unsharded reference."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(6), torch.nn.RMSNorm(6)])
def test_a_recomputed_norm_has_the_first_and_second_derivatives_of_finite_differences(norm: torch.nn.Module) -> None:
    norm = norm.double()
    inputs = (torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True), *norm.parameters())

    def run(tensor: Tensor, *parameters: Tensor) -> Tensor:
        return recomputed(norm, tensor)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_hook_on_a_norm_sees_what_it_sees_in_any_model() -> None:
    net = model()
    seen = []
    norm = net.model.layers[1].input_layernorm
    norm.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    net.model.layers[0].input_layernorm.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))

    gradients(net)

    assert seen == [True, torch.Size([2, 30, 32])]
