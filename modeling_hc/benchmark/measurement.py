# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""How a variant is measured: times beside the stock model's, bytes, a profile, and losses over a short training."""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm
from transformers import LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import local_torch_dtype

from .. import dispatch_hc, kernels
from ..hyper_connections import CONNECTIONS
from .variants import FOREIGN, OURS, RIVALS, ListedHyperConnection, Variant, build, shape_of

TIMES = ("step", "forward", "backward", "prefill", "decode")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


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
    if kind in ("stock", "recompute", "frac"):
        return None
    n, d, device, dtype = int(n), args.hidden_size, args.device, getattr(torch, args.dtype)

    def draw(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(args.batch_size, args.sequence, *size, device=device, dtype=dtype, requires_grad=True)

    streams, output = draw(n, d), draw(d)
    if kind in OURS:
        module = CONNECTIONS[kind](n, d, 0).to(device)
        alpha, beta = draw(n, n + 1, dtype=torch.float32), draw(n, dtype=torch.float32)
        if kind == "static":
            alpha, beta = (parameter.detach().clone().requires_grad_() for parameter in module.parameters())
        inputs = [streams, output, alpha, beta]

        def boundary() -> tuple[Tensor, ...]:
            return module(*inputs)[: 2 if kind == "static" else 4]
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
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spent = statistics.median(each[variant.name][column] for each in rounds)
        row[column] = {"ratio": median, "quartiles": [low, high], "seconds": spent}
    return row | {"profile": profiled(variant, inputs)}


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
