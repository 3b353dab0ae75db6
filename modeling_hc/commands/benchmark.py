# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Times hyper-connected models, and what others offer, against the stock Llama, all in one process.

    modeling-hc benchmark                                      # fp32, eager: the default shape
    modeling-hc benchmark --dtype bfloat16 --compile --output results/benchmark/mine.json
    modeling-hc benchmark --gpu --output results/benchmark/gpu.json    # OLMo-1B's shape, bf16, compiled, on CUDA
    modeling-hc benchmark --variants dynamic-4 --curve 200     # losses with and without the kernels
    modeling-hc benchmark --figure results/benchmark/cpu-*.json    # draws results/benchmark/benchmark.png anew

Every variant has the stock Llama's blocks, weights and inputs. Ours and the listing are fresh, so their loss must
equal the stock loss; the others start elsewhere and must have a finite one. Each variant takes turns with the stock
model, and its time is divided by the stock model's in the same round. The table gives medians of these ratios and
quartiles.

    step, forward, backward    of a training step
    prefill, decode            without gradients: the prompts at once, then one token at a time with a cache; with
                               --compile, decoding is compiled with mode="reduce-overhead" (CUDA graphs) and a static
                               cache, and the prompts are not compiled
    kept                       bytes that a forward pass leaves allocated for its backward pass
    peak                       the most bytes that a training step has allocated at a time, gradients included
    eager                      with --compile: the peak without; block recompute (recompute-N) shows there only
    boundary                   the depth connection of one block and the width connection of the next, alone, forward
                               and backward: the share of a copy's bandwidth that is reached, counting the least any
                               implementation moves, 2n + 2 and 3n + 3 numbers of the hidden size a token

`kept` and `peak` come from the allocator's events (CPU) or its statistics (CUDA); parameters are not in them. The
results file also has a profile of one training step: what ran how often and for how long. Every row is written when it
is done, and a file that exists is completed, so a command that was cut off goes on when it is given again.

The environment variable MODELING_HC_KERNELS=reference takes the Triton kernels away, for a comparison.
glibc hands large tensors back to the system at every free, which costs all variants time on CPUs and the large ones
most: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 in the environment stops that, and the result says so.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import local_torch_dtype
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import modeling_hc

from .. import DynamicHyperConnection, HCLlamaConfig, HCLlamaForCausalLM, StaticHyperConnection, dispatch_hc, kernels
from ..records import command_line, write_json


class ListedHyperConnection(nn.Module):
    """Algorithm 2 of the paper as its operations stand there, eager PyTorch: what anybody would write first."""

    def __init__(self, rate: int, dim: int, layer_id: int) -> None:
        super().__init__()
        read = torch.zeros(rate, 1)
        read[layer_id % rate] = 1
        self.static_alpha = nn.Parameter(torch.cat([read, torch.eye(rate)], dim=1))
        self.static_beta = nn.Parameter(torch.ones(rate))
        self.dynamic_alpha_fn = nn.Parameter(torch.zeros(dim, rate + 1))
        self.dynamic_alpha_scale = nn.Parameter(torch.full((1,), 0.01))
        self.dynamic_beta_fn = nn.Parameter(torch.zeros(dim))
        self.dynamic_beta_scale = nn.Parameter(torch.full((1,), 0.01))
        self.layer_norm = nn.LayerNorm(dim)

    def width_connection(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.layer_norm(streams)
        alpha = torch.tanh(normed @ self.dynamic_alpha_fn) * self.dynamic_alpha_scale + self.static_alpha
        beta = torch.tanh(normed @ self.dynamic_beta_fn) * self.dynamic_beta_scale + self.static_beta
        return alpha.transpose(-1, -2) @ streams, beta

    def depth_connection(self, mixed: Tensor, output: Tensor, beta: Tensor) -> Tensor:
        return torch.einsum("blh,bln->blnh", output, beta) + mixed[..., 1:, :]


class ListedDecoderLayer(LlamaDecoderLayer):
    """Algorithm 3: the stock attention and MLP between the listed connections."""

    def __init__(self, config: LlamaConfig, layer_idx: int, rate: int) -> None:
        super().__init__(config, layer_idx)
        self.rate, self.first, self.last = rate, layer_idx == 0, layer_idx == config.num_hidden_layers - 1
        self.attn_hc = ListedHyperConnection(rate, config.hidden_size, 2 * layer_idx)
        self.mlp_hc = ListedHyperConnection(rate, config.hidden_size, 2 * layer_idx + 1)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        streams = hidden_states.unsqueeze(-2).repeat(1, 1, self.rate, 1) if self.first else hidden_states
        mixed, beta = self.attn_hc.width_connection(streams)
        output, _ = self.self_attn(hidden_states=self.input_layernorm(mixed[..., 0, :]), **kwargs)
        streams = self.attn_hc.depth_connection(mixed, output, beta)
        mixed, beta = self.mlp_hc.width_connection(streams)
        output = self.mlp(self.post_attention_layernorm(mixed[..., 0, :]))
        streams = self.mlp_hc.depth_connection(mixed, output, beta)
        return streams.sum(-2) if self.last else streams


class RivalDecoderLayer(LlamaDecoderLayer):
    """The stock attention and MLP between two modules of another library; the ends open and close."""

    def __init__(self, config: LlamaConfig, layer_idx: int, streams: int) -> None:
        super().__init__(config, layer_idx)
        self.streams, self.first, self.last = streams, layer_idx == 0, layer_idx == config.num_hidden_layers - 1
        self.attn_hc, self.mlp_hc = (self.connection(config, 2 * layer_idx + i) for i in (0, 1))

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        h = hidden_states.unsqueeze(-2).repeat(1, 1, self.streams, 1) if self.first else hidden_states
        h = self.site(self.attn_hc, h, lambda x: self.self_attn(hidden_states=self.input_layernorm(x), **kwargs)[0])
        h = self.site(self.mlp_hc, h, lambda x: self.mlp(self.post_attention_layernorm(x)))
        return h.sum(-2) if self.last else h


class LucidrainsDecoderLayer(RivalDecoderLayer):
    """The package hyper-connections: dynamic, with tanh."""

    def connection(self, config: LlamaConfig, index: int) -> nn.Module:
        from hyper_connections import HyperConnections

        return HyperConnections(self.streams, dim=config.hidden_size, layer_index=index, tanh=True)

    def site(self, connection: nn.Module, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        batch = h.shape[0]  # it wants [batch * streams, sequence, dim], streams innermost
        block_input, add = connection(h.transpose(1, 2).flatten(0, 1))
        return add(block(block_input)).unflatten(0, (batch, -1)).transpose(1, 2)


class DeepseekDecoderLayer(RivalDecoderLayer):
    """The manifold-constrained hyper-connection of transformers' DeepSeek-V4, another method (arXiv 2512.24880)."""

    def connection(self, config: LlamaConfig, index: int) -> nn.Module:
        from transformers.models.deepseek_v4 import modeling_deepseek_v4

        fields = {"hc_mult": self.streams, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6}
        module = modeling_deepseek_v4.DeepseekV4HyperConnection(
            SimpleNamespace(hidden_size=config.hidden_size, **fields)
        )
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        return module

    def site(self, connection: nn.Module, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        post, comb, block_input = connection(h)
        written = post.to(h.dtype).unsqueeze(-1) * block(block_input).unsqueeze(-2)
        return written + torch.matmul(comb.to(h.dtype).transpose(-1, -2), h)


class LigerDecoderLayer(RivalDecoderLayer):
    """The mHC kernels of Liger-Kernel: another method (arXiv 2512.24880), in Triton."""

    def connection(self, config: LlamaConfig, index: int) -> nn.Module:
        from liger_kernel.transformers import LigerMHC

        sizes = {"hc": self.streams, "c": config.hidden_size}
        return LigerMHC(nn.Identity(), **sizes, phi_dtype=torch.get_default_dtype())  # its module wraps one layer only

    def site(self, connection: nn.Module, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        from liger_kernel.transformers.functional import liger_mhc_coeffs, liger_mhc_post_res, liger_mhc_pre

        c = connection
        read, write, carry = liger_mhc_coeffs(
            h, c.phi, c.b, c.alpha_pre, c.alpha_post, c.alpha_res, allow_fp32=h.dtype == torch.float32
        )
        return liger_mhc_post_res(h, block(liger_mhc_pre(h, read)), write, carry)


RIVALS = {
    "listing": ListedDecoderLayer,
    "lucidrains": LucidrainsDecoderLayer,
    "deepseek": DeepseekDecoderLayer,
    "liger": LigerDecoderLayer,
}
FOREIGN = ("lucidrains", "deepseek", "liger")  # with other initial values than the stock model's
OURS = ("static", "dynamic", "recompute")
TIMES = ("step", "forward", "backward", "prefill", "decode")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
GPU = {
    "device": "cuda",
    "dtype": "bfloat16",
    "compile": True,
    "batch_size": 4,
    "sequence": 2048,
    "layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "head_size": 128,
    "vocab_size": 50304,
    "variants": [
        *("dynamic-4", "recompute-4", "dynamic-2", "recompute-2", "static-4", "static-2"),
        *("listing-4", "liger-4", "deepseek-4", "lucidrains-4"),
    ],
}


@dataclass
class Variant:
    name: str
    model: PreTrainedModel
    step: Callable[..., CausalLMOutputWithPast]
    decode: Callable[..., CausalLMOutputWithPast]
    cache: StaticCache | None  # where decoding is compiled


def absent(kind: str, device: str) -> str | None:
    """Returns why there can be no rows of a kind, or None."""
    package = {"lucidrains": "hyper_connections", "liger": "liger_kernel"}.get(kind, "transformers")
    if not find_spec(package):
        return f"the package {package.replace('_', '-')} is not installed"
    if kind == "deepseek" and not find_spec("transformers.models.deepseek_v4"):
        return f"transformers {transformers.__version__} does not have it"
    if kind == "liger" and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels need CUDA"
    return None


def build(name: str, shape: dict[str, int], dtype: torch.dtype, device: str, seed: int = 0) -> PreTrainedModel:
    """Builds "stock" or a kind with its number of streams; "recompute-N" is dynamic, with block recompute."""
    torch.manual_seed(seed)
    kind, _, n = name.partition("-")
    if kind in OURS:
        connection = "static" if kind == "static" else "dynamic"
        fields = {"num_streams": int(n), "connection": connection, "output_rescaling": "none"}
        model = HCLlamaForCausalLM._from_config(HCLlamaConfig(**shape, **fields), dtype=dtype).to(device)
        if kind == "recompute":
            model.recompute_streams()
        return model
    config = LlamaConfig(**shape)
    model = LlamaForCausalLM._from_config(config, dtype=dtype)
    if kind in RIVALS:
        with local_torch_dtype(dtype):
            model.model.layers = nn.ModuleList(RIVALS[kind](config, i, int(n)) for i in range(len(model.model.layers)))
    return model.to(device)


def prepare(name: str, shape: dict[str, int], args: argparse.Namespace, stock: PreTrainedModel | None) -> Variant:
    """Builds a model with the stock model's weights wherever the names are the same, and compiles it."""
    model = build(name, shape, getattr(torch, args.dtype), args.device)
    if stock is not None:
        missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False, assign=True)
        assert not unexpected and all("_hc." in key for key in missing), (missing, unexpected)
    if not args.compile:
        return Variant(name, model, model, model, None)
    # Sizes are constants, or what was compiled for one variant would make those of the next dynamic.
    options = {"fullgraph": not name.startswith(FOREIGN), "dynamic": False}
    step, decode = torch.compile(model, **options), torch.compile(model, mode="reduce-overhead", **options)
    return Variant(name, model, step, decode, StaticCache(model.config, args.sequence + args.decode_tokens))


def memory(step: Callable[..., CausalLMOutputWithPast], inputs: Tensor) -> dict[str, int]:
    """Counts what a forward pass leaves allocated, and the most that a step has allocated, in bytes."""
    if inputs.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = step(input_ids=inputs, labels=inputs, use_cache=False).loss
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return {"kept": kept, "peak": torch.cuda.max_memory_allocated() - before}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = step(input_ids=inputs, labels=inputs, use_cache=False).loss
        with record_function("backward starts"):
            loss.backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    start = next(event.start_ns() for event in events if event.name() == "backward starts")
    level, levels = 0, []
    for event in events:
        if event.name() == "[memory]":
            level += event.nbytes()
            levels.append((event.start_ns() < start, level))
    return {"kept": [level for forward, level in levels if forward][-1], "peak": max(level for _, level in levels)}


def profiled(variant: Variant, inputs: Tensor) -> list[dict[str, str | int | float]]:
    """Returns what took longest in a training step: kernels on CUDA, operators on a CPU."""
    activity = ProfilerActivity.CUDA if inputs.is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        time_step(variant, inputs)
    where = DeviceType.CUDA if inputs.is_cuda else DeviceType.CPU
    spent = [
        {"name": e.key[:120], "calls": e.count, "ms": (e.self_device_time_total or e.self_cpu_time_total) / 1e3}
        for e in profiler.key_averages()
        if e.device_type == where and not e.is_user_annotation
    ]
    total = sum(each["ms"] for each in spent)
    longest = sorted(spent, key=lambda each: each["ms"], reverse=True)[:25]
    return [each | {"share": each["ms"] / total} for each in longest]


def time_boundary(name: str, args: argparse.Namespace) -> dict[str, float | bool] | None:
    """Times the boundary between two blocks alone, and a copy of its streams; returns bandwidths over the copy's."""
    kind, _, n = name.partition("-")
    if kind in ("stock", "recompute"):
        return None
    n, d, device, dtype = int(n), args.hidden_size, args.device, getattr(torch, args.dtype)

    def draw(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(args.batch_size, args.sequence, *size, device=device, dtype=dtype, requires_grad=True)

    streams, output = draw(n, d), draw(d)
    if kind in OURS:
        module = (DynamicHyperConnection if kind == "dynamic" else StaticHyperConnection)(n, d, 0).to(device)
        alpha, beta = draw(n, n + 1, dtype=torch.float32), draw(n, dtype=torch.float32)
        if kind == "static":
            alpha, beta = (parameter.detach().clone().requires_grad_() for parameter in module.parameters())
        inputs = [streams, output, alpha, beta]

        def boundary() -> tuple[Tensor, ...]:
            return module(*inputs)[: 4 if kind == "dynamic" else 2]
    elif kind == "listing":
        with local_torch_dtype(dtype):
            module = ListedHyperConnection(n, d, 0).to(device)
        inputs = [draw(n + 1, d), output, draw(n)]  # the streams are mixed already

        def boundary() -> tuple[Tensor, ...]:
            return module.width_connection(module.depth_connection(*inputs))
    else:
        with local_torch_dtype(dtype):
            config = LlamaConfig(hidden_size=d, intermediate_size=1, num_attention_heads=1)
            layer = RIVALS[kind](config, 0, n).to(device)
        module, inputs = layer.attn_hc, [streams]

        def boundary() -> tuple[Tensor, ...]:
            return (layer.site(module, streams, lambda block_input: block_input),)

    if args.compile:
        boundary = torch.compile(boundary, fullgraph=kind not in FOREIGN, dynamic=False)
    wanted = [*inputs, *module.parameters()]
    gradients = [torch.randn_like(tensor) for tensor in boundary()]
    copy = torch.empty_like(streams, requires_grad=False)

    def lap() -> list[float | torch.cuda.Event]:
        marks = [mark(device)]
        results = boundary()
        marks.append(mark(device))
        torch.autograd.grad(results, wanted, gradients, allow_unused=True)
        marks.append(mark(device))
        copy.copy_(streams.detach())
        return [*marks, mark(device)]

    lap()
    if device != "cpu":
        torch.cuda._sleep(10**8)  # the laps queue up behind it: the device never waits for the next launch
    laps = [lap() for _ in range(args.rounds)]
    forward, backward, copying = (statistics.median(seconds(m[k], m[k + 1]) for m in laps) for k in range(3))
    a_row = copying / (2 * n)  # the time of a number of the hidden size a token; a copy reads and writes
    return {
        "forward": (2 * n + 2) * a_row / forward,
        "backward": (3 * n + 3) * a_row / backward,
        "copy_bytes_per_second": 2 * copy.nbytes / copying,
        "kernels": kind in OURS and dispatch_hc.fuses(streams),
    }


def mark(device: str) -> float | torch.cuda.Event:
    """Notes the time: now, or on CUDA when the work that was given out is done."""
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def time_step(variant: Variant, inputs: Tensor) -> dict[str, float]:
    start = mark(inputs.device.type)
    loss = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss
    middle = mark(inputs.device.type)
    loss.backward()
    end = mark(inputs.device.type)
    variant.model.zero_grad(set_to_none=True)
    return {"step": seconds(start, end), "forward": seconds(start, middle), "backward": seconds(middle, end)}


@torch.no_grad()
def time_decode(variant: Variant, inputs: Tensor, tokens: int) -> dict[str, float]:
    if variant.cache is not None:
        variant.cache.reset()
    start = mark(inputs.device.type)
    outputs = variant.model(input_ids=inputs, past_key_values=variant.cache, use_cache=True, logits_to_keep=1)
    cache, token = outputs.past_key_values, inputs[:, :1].clone()
    middle = mark(inputs.device.type)
    for _ in range(tokens):
        torch.compiler.cudagraph_mark_step_begin()
        variant.decode(input_ids=token, past_key_values=cache, use_cache=True)
    return {"prefill": seconds(start, middle), "decode": seconds(middle, mark(inputs.device.type)) / tokens}


def measure(variant: Variant, stock: Variant, inputs: Tensor, args: argparse.Namespace, stock_row: dict) -> dict:
    """Returns a variant's row; `stock_row` is the stock model's, or empty where that is the variant."""
    loss = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss.item()
    tolerance = math.inf if variant.name.startswith(FOREIGN) else TOLERANCE[args.dtype]
    if not abs(loss - stock_row.get("loss", loss)) <= tolerance:
        raise ValueError(f"{variant.name} computes a loss of {loss}, the stock model {stock_row['loss']}.")

    pair = {variant.name: variant, "stock": stock}
    for each in pair.values():  # warm up, and compile
        time_step(each, inputs)
        time_decode(each, inputs, args.decode_tokens)
    counted = memory(variant.step, inputs)
    variant.model.zero_grad(set_to_none=True)
    if args.compile:
        counted["eager"] = memory(variant.model, inputs)["peak"]
        variant.model.zero_grad(set_to_none=True)
    row = {key: count / stock_row.get("bytes", counted)[key] for key, count in counted.items()}
    row |= {"bytes": counted, "loss": loss, "boundary": time_boundary(variant.name, args)}

    rounds = [
        {name: time_step(v, inputs) | time_decode(v, inputs, args.decode_tokens) for name, v in pair.items()}
        for _ in tqdm(range(args.rounds), desc=variant.name, disable=None)
    ]
    for column in TIMES:
        ratios = [each[variant.name][column] / each["stock"][column] for each in rounds]
        low, median, high = statistics.quantiles(ratios, n=4)
        spent = statistics.median(each[variant.name][column] for each in rounds)
        row[column] = {"ratio": median, "quartiles": [low, high], "seconds": spent}
    return row | {"profile": profiled(variant, inputs)}


def shape_of(args: argparse.Namespace) -> dict[str, int]:
    return {
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden_size // args.head_size,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": args.sequence + args.decode_tokens,
    }


def benchmark(args: argparse.Namespace, result: dict) -> None:
    """Adds the rows that the result lacks, prints each, and writes the results file after each."""
    shape = shape_of(args)
    size, generator = (args.batch_size, args.sequence), torch.Generator().manual_seed(0)
    inputs = torch.randint(args.vocab_size, size, generator=generator).to(args.device)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # the variants share the code of their forward passes

    stock, rows = prepare("stock", shape, args, None), result["rows"]
    print(header())
    for name in dict.fromkeys(["stock", *args.variants]):
        if name not in rows:
            try:
                variant = stock if name == "stock" else prepare(name, shape, args, stock.model)
                rows[name] = measure(variant, stock, inputs, args, rows.get("stock", {}))
            except Exception as error:
                if name == "stock":
                    raise
                traceback.print_exc()
                rows[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            variant = None
            gc.collect()
            if args.output:
                write_json(args.output, result)
            if args.device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.synchronize()  # raises where a variant has left the device unusable
        print(line(name, rows[name]), flush=True)
    stock_row = rows["stock"]
    print(", ".join(f"{column} {stock_row[column]['seconds'] * 1e3:.1f} ms" for column in TIMES) + " (stock)")


def curves(args: argparse.Namespace) -> dict[str, list[float]]:
    """Trains the first variant on Python's own source, as bytes: with kernels, without, and without from another seed.

    Returns the losses of each.
    """
    text = b"".join(file.read_bytes() for file in sorted(Path(os.__file__).parent.glob("*.py")))
    tokens, generator = torch.frombuffer(bytearray(text), dtype=torch.uint8), torch.Generator().manual_seed(0)
    starts = torch.randint(len(tokens) - args.sequence, (args.curve, args.batch_size, 1), generator=generator)
    losses: dict[str, list[float]] = {}
    for label, choice, seed in (
        ("kernels", "triton", 0),
        ("reference", "reference", 0),
        ("reference, another seed", "reference", 1),
    ):
        with kernels(choice):
            model = build(args.variants[0], shape_of(args), getattr(torch, args.dtype), args.device, seed)
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
            losses[label] = []
            for start in tqdm(starts, desc=label, disable=None):
                ids = tokens[start + torch.arange(args.sequence)].long().to(args.device)
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[label].append(loss.item())
    return losses


def result_of(args: argparse.Namespace) -> dict:
    """Returns a result without rows: what was asked for, and of which machine and versions."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "command": command_line(),
        "environment": {
            "machine": machine if args.device == "cpu" else torch.cuda.get_device_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "modeling_hc": modeling_hc.__version__,
            "triton": installed("triton"),
            "hyper_connections": installed("hyper-connections"),
            "liger_kernel": installed("liger-kernel"),
            "kernels": dispatch_hc.KERNELS,
            "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        },
        "rows": {},
    }


def go_on(result: dict) -> None:
    """Takes the rows of the results file if there is one.

    Raises:
        ValueError: the file holds something else, or was made with other arguments or on another machine.
    """
    output = Path(result["arguments"]["output"])
    if not output.exists():
        return
    try:
        before = json.loads(output.read_text())
        differing = [
            f"{key} was {before[part].get(key)!r} and is {value!r}"
            for part in ("arguments", "environment")
            for key, value in result[part].items()
            if key not in ("variants", "output", "figure", "gpu") and before[part].get(key) != value
        ]
        result["rows"] = before["rows"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{output} exists and is no result of this script; choose another name.") from error
    if differing:
        raise ValueError(f"{output} exists and cannot be completed: {'; '.join(differing)}. Choose another name.")


def header() -> str:
    times = "".join(f"{column:>19}" for column in TIMES)
    return f"{'over stock':14}{times}    kept    peak   eager   bandwidth of a boundary"


def line(name: str, row: dict) -> str:
    if "failed" in row:
        return f"{name:14}  failed: {row['failed']}"
    cells = [
        f"{r['ratio']:6.2f} ({r['quartiles'][0]:.2f}-{r['quartiles'][1]:.2f})".rjust(19) for r in map(row.get, TIMES)
    ]
    cells += [f"{row[key]:8.3f}" if key in row else " " * 8 for key in ("kept", "peak", "eager")]
    if boundary := row["boundary"]:
        cells.append(f"   {boundary['forward']:.2f} forward, {boundary['backward']:.2f} backward")
    return f"{name:14}{''.join(cells)}".rstrip()


def draw(files: list[Path]) -> Path:
    """Draws the training step and the bytes kept of several results side by side, beside the first of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = {file.stem: json.loads(file.read_text()) for file in files}
    for result in results.values():
        result["rows"] = {name: row for name, row in result["rows"].items() if name != "stock" and "failed" not in row}
    names = list(dict.fromkeys(name for result in results.values() for name in result["rows"]))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.5 + 0.42 * len(names)), sharey=True, layout="constrained")
    height = 0.8 / len(results)
    for i, (label, result) in enumerate(results.items()):
        rows = [(at, result["rows"][name]) for at, name in enumerate(names) if name in result["rows"]]
        at = [at + (i - (len(results) - 1) / 2) * height for at, _ in rows]
        step = [row["step"] for _, row in rows]
        spread = [[s["ratio"] - s["quartiles"][0] for s in step], [s["quartiles"][1] - s["ratio"] for s in step]]
        axes[0].barh(at, [s["ratio"] for s in step], height, xerr=spread, label=label, error_kw={"lw": 0.8})
        axes[1].barh(at, [row["kept"] for _, row in rows], height, label=label)
    for axis, title in zip(axes, ("training step", "kept for backward"), strict=True):
        axis.axvline(1, color="black", lw=0.8)
        axis.set(xlabel=f"{title}, over the stock Llama", yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize="small")
    picture = files[0].parent / "benchmark.png"
    figure.savefig(picture, dpi=120)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[
            *(f"{kind}-{n}" for kind in RIVALS for n in (2, 4)),
            *(f"{kind}-{n}" for kind in OURS for n in (1, 2, 4, 8)),
        ],
        help="any of static-N, dynamic-N, recompute-N (dynamic, with block recompute), listing-N (of the paper), "
        "lucidrains-N (the package hyper-connections), deepseek-N (the mHC module of transformers' DeepSeek-V4), "
        "liger-N (the mHC of the package liger-kernel)",
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the stock model, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--intermediate_size", type=int, default=1408)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--decode_tokens", type=int, default=16)
    parser.add_argument("--gpu", action="store_true", help="other defaults: OLMo-1B's shape, bf16, compiled, on CUDA")
    parser.add_argument("--output", type=Path, help="JSON file for the results; one that exists is completed")
    parser.add_argument("--curve", type=int, metavar="STEPS", help="compare losses with and without kernels, and stop")
    parser.add_argument("--figure", type=Path, nargs="+", metavar="JSON", help="draw these results and stop")
    if parser.parse_known_args()[0].gpu:
        parser.set_defaults(**GPU)
    args = parser.parse_args()
    if args.figure:
        print(draw(args.figure))
        return
    for name in args.variants:
        kind, _, n = name.partition("-")
        if name != "stock" and (kind not in (*OURS, *RIVALS) or not n.isdigit() or int(n) < 1):
            parser.error(f"--variants: {name!r} is not one of {'-N, '.join((*OURS, *RIVALS))}-N with N at least 1")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: there is no {args.device} here; --device cpu needs a smaller shape than --gpu has")
    if args.rounds < 2:
        parser.error(f"--rounds: {args.rounds} is too few for a median; use at least 2")
    for kind in dict.fromkeys(name.partition("-")[0] for name in args.variants):
        if reason := absent(kind, args.device):
            args.variants = [name for name in args.variants if not name.startswith(kind)]
            print(f"There are no rows of {kind}: {reason}.", file=sys.stderr)
    result = result_of(args)
    if args.curve:
        kind, _, n = args.variants[0].partition("-")
        like = torch.empty(int(n or 0), args.hidden_size, dtype=getattr(torch, args.dtype), device=args.device)
        if kind not in OURS or (reason := dispatch_hc.refusal(like)):
            parser.error(f"--curve: {reason if kind in OURS else f'{args.variants[0]} has no kernels of ours'}")
        if args.output and args.output.exists():
            parser.error(f"--output: {args.output} exists; choose another name or remove it")
        losses = curves(args)
        ours, plain, other = map(torch.tensor, losses.values())
        print(f"The loss falls from {plain[0]:.3f} to {plain[-20:].mean():.3f}, the mean of the last 20 steps.")
        print(f"Mean distance of the losses: with and without kernels {(ours - plain).abs().mean():.2e}, of two seeds")
        print(f"{(other - plain).abs().mean():.2e}.")
        if args.output:
            write_json(
                args.output, {key: result[key] for key in ("arguments", "command", "environment")} | {"losses": losses}
            )
        return
    try:
        if args.output:
            go_on(result)
    except ValueError as error:
        parser.error(f"--output: {error}")
    benchmark(args, result)
    if failed := [name for name, row in result["rows"].items() if "failed" in row]:
        sys.exit(f"Failed: {', '.join(failed)}. Take a row out of the results file to try it again.")


if __name__ == "__main__":
    main()
