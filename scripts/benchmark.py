# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Times hyper-connected models, and what others offer, against the stock Llama, all in one process.

    python scripts/benchmark.py                                      # fp32, eager: the default shape
    python scripts/benchmark.py --dtype bfloat16 --compile --output results/benchmark/mine.json
    python scripts/benchmark.py --figure results/benchmark/*.json    # draws results/benchmark/benchmark.png anew

Every variant has the stock Llama's blocks, weights and inputs. Ours and the listing are fresh, so their loss must
equal the stock loss; the others start elsewhere and must have a finite one. The variants take turns, and each round's
time is divided by the stock model's time in the same round. The table gives medians of these ratios and quartiles.

    step, forward, backward    of a training step
    prefill, decode            without gradients: the prompts at once, then one token at a time with a cache
    kept                       bytes that a forward pass leaves allocated for its backward pass
    peak                       the most bytes that a training step has allocated at a time, gradients included
    site                       one hyper-connection alone, forward and backward, over the time that copying its bytes
                               takes: 5n + 5 numbers of the hidden size a token, the least any implementation moves

`kept` and `peak` come from the allocator's events (CPU) or its statistics (CUDA); parameters are not in them.
glibc hands large tensors back to the system at every free, which costs all variants time on CPUs and the large ones
most: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 in the environment stops that, and the result says so.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import modeling_hc
from modeling_hc import DynamicHyperConnection, HCLlamaConfig, HCLlamaForCausalLM, StaticHyperConnection
from modeling_hc.dispatch_hc import depth_connection


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


RIVALS = {"listing": ListedDecoderLayer, "lucidrains": LucidrainsDecoderLayer, "deepseek": DeepseekDecoderLayer}
OURS = ("static", "dynamic", "recompute")


TIMES = ("step", "forward", "backward", "prefill", "decode")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass
class Variant:
    name: str
    model: PreTrainedModel
    step: Callable[..., object]


def build(name: str, shape: dict[str, int], dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Builds "stock" or one of KINDS with its number of streams; "recompute-N" is dynamic, with block recompute."""
    torch.manual_seed(0)
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
        model.model.layers = nn.ModuleList(RIVALS[kind](config, i, int(n)) for i in range(len(model.model.layers)))
    return model.to(device=device, dtype=dtype)


def memory(variant: Variant, inputs: Tensor) -> dict[str, int]:
    """Counts what a forward pass leaves allocated, and the most that a step has allocated, in bytes."""
    variant.model.zero_grad(set_to_none=True)
    if inputs.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return {"kept": kept, "peak": torch.cuda.max_memory_allocated() - before}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss
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


def time_site(name: str, shape: dict[str, int], args: argparse.Namespace) -> float | None:
    """Returns one hyper-connection's time, forward and backward, over that of copying the bytes that it must move."""
    kind, _, n = name.partition("-")
    if kind not in ("listing", "static", "dynamic"):
        return None
    n, device, dtype = int(n), args.device, getattr(torch, args.dtype)
    size = args.batch_size, args.sequence, n, args.hidden_size
    streams, output = (
        torch.randn(s, device=device, dtype=dtype, requires_grad=True) for s in (size, (*size[:2], size[3]))
    )
    if kind == "listing":
        module = ListedHyperConnection(n, size[3], 0).to(device=device, dtype=dtype)

        def site() -> tuple[Tensor, Tensor]:
            mixed, beta = module.width_connection(streams)
            return mixed[..., 0, :], module.depth_connection(mixed, output, beta)
    else:
        cls = DynamicHyperConnection if kind == "dynamic" else StaticHyperConnection
        module = cls(n, size[3], 0).to(device)

        def site() -> tuple[Tensor, Tensor]:
            _, block_input, alpha, beta = module(streams)
            return block_input, depth_connection(streams, output, alpha, beta)

    run = torch.compile(site, fullgraph=True) if args.compile else site
    gradients = [torch.randn_like(tensor) for tensor in run()]
    source = torch.randn(
        (5 * n + 5) * streams.numel() // (2 * n), device=device, dtype=dtype
    )  # a copy reads and writes
    target = torch.empty_like(source)

    def differentiate() -> None:
        torch.autograd.grad(run(), [streams, output, *module.parameters()], gradients)

    differentiate()
    times = [(timed(differentiate, device)[0], timed(lambda: target.copy_(source), device)[0]) for _ in range(20)]
    return statistics.median(time for time, _ in times) / statistics.median(copy for _, copy in times)


def timed(function: Callable[[], object], device: str) -> tuple[float, object]:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def time_step(variant: Variant, inputs: Tensor, device: str) -> dict[str, float]:
    forward, outputs = timed(lambda: variant.step(input_ids=inputs, labels=inputs, use_cache=False), device)
    backward, _ = timed(outputs.loss.backward, device)
    variant.model.zero_grad(set_to_none=True)
    return {"step": forward + backward, "forward": forward, "backward": backward}


@torch.no_grad()
def time_decode(variant: Variant, inputs: Tensor, tokens: int, device: str) -> dict[str, float]:
    prefill, outputs = timed(lambda: variant.model(input_ids=inputs, use_cache=True, logits_to_keep=1), device)
    cache, token = outputs.past_key_values, inputs[:, :1]

    def decode() -> None:
        for _ in range(tokens):
            variant.model(input_ids=token, past_key_values=cache, use_cache=True)

    return {"prefill": prefill, "decode": timed(decode, device)[0] / tokens}


def benchmark(args: argparse.Namespace) -> dict:
    device = args.device
    shape = {
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden_size // 64,
        "vocab_size": 8192,
    }
    names = ["stock", *(name for name in args.variants if name != "stock")]
    inputs = torch.randint(8192, (args.batch_size, args.sequence), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    variants = []
    for name in names:
        model = build(name, shape, getattr(torch, args.dtype), device)
        if name != "stock":  # the same weights wherever the names are the same, so that the losses can be compared
            missing, unexpected = model.load_state_dict(variants[0].model.state_dict(), strict=False)
            assert not unexpected and all("_hc." in key for key in missing), (missing, unexpected)
        variants.append(Variant(name, model, torch.compile(model, fullgraph=True) if args.compile else model))

    bytes_of, losses = {}, {}
    for variant in tqdm(variants, desc="checking", disable=None):
        loss = losses[variant.name] = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss.item()
        tolerance = math.inf if variant.name.startswith(("lucidrains", "deepseek")) else TOLERANCE[args.dtype]
        if not abs(loss - losses["stock"]) <= tolerance:
            sys.exit(f"{variant.name} computes a loss of {loss}, the stock model {losses['stock']}.")
        time_step(variant, inputs, device)
        bytes_of[variant.name] = memory(variant, inputs)
    sites = {name: time_site(name, shape, args) for name in names}

    rounds: list[dict[str, dict[str, float]]] = []
    for _ in tqdm(range(args.rounds), desc="timing", disable=None):
        rounds.append(
            {
                v.name: time_step(v, inputs, device) | time_decode(v, inputs, args.decode_tokens, device)
                for v in variants
            }
        )
    rows = {}
    for name in names:
        rows[name] = {column: bytes_of[name][column] / bytes_of["stock"][column] for column in ("kept", "peak")}
        rows[name] |= {"bytes": bytes_of[name], "site": sites[name], "loss": losses[name]}
        for column in TIMES:
            ratios = [each[name][column] / each["stock"][column] for each in rounds]
            low, median, high = statistics.quantiles(ratios, n=4)
            seconds = statistics.median(each[name][column] for each in rounds)
            rows[name][column] = {"ratio": median, "quartiles": [low, high], "seconds": seconds}
    return {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "command": " ".join(["python", *sys.argv]),
        "environment": {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
            if device == "cpu"
            else torch.cuda.get_device_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "modeling_hc": modeling_hc.__version__,
            "hyper_connections": version("hyper-connections") if find_spec("hyper_connections") else None,
            "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        },
        "rows": rows,
    }


def table(result: dict) -> str:
    lines = [f"{'over stock':14}" + "".join(f"{column:>19}" for column in TIMES) + "    kept    peak    site"]
    for name, row in result["rows"].items():
        cells = "".join(
            f"{r['ratio']:6.2f} ({r['quartiles'][0]:.2f}-{r['quartiles'][1]:.2f})".rjust(19)
            for r in map(row.get, TIMES)
        )
        site = f"{row['site']:8.1f}" if row["site"] else ""
        lines.append(f"{name:14}{cells}{row['kept']:8.3f}{row['peak']:8.3f}{site}")
    stock = result["rows"]["stock"]
    lines.append(", ".join(f"{column} {stock[column]['seconds'] * 1e3:.1f} ms" for column in TIMES) + " (stock)")
    return "\n".join(lines)


def draw(files: list[Path]) -> Path:
    """Draws the training step and the bytes kept of several results side by side, beside the first of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = {file.stem: json.loads(file.read_text()) for file in files}
    names = list(dict.fromkeys(name for result in results.values() for name in result["rows"] if name != "stock"))
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
            *("listing-2", "listing-4", "lucidrains-2", "lucidrains-4", "deepseek-2", "deepseek-4"),
            *(f"{kind}-{n}" for kind in OURS for n in (1, 2, 4, 8)),
        ],
        help="any of static-N, dynamic-N, recompute-N (dynamic, with block recompute), listing-N (of the paper), "
        "lucidrains-N (the package hyper-connections), deepseek-N (the mHC module of transformers' DeepSeek-V4)",
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile every variant, the stock model too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--intermediate_size", type=int, default=1408)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--decode_tokens", type=int, default=16)
    parser.add_argument("--output", type=Path, help="JSON file for the results; must not exist")
    parser.add_argument("--figure", type=Path, nargs="+", metavar="JSON", help="draw these results and stop")
    args = parser.parse_args()
    if args.figure:
        print(draw(args.figure))
        return
    for name in args.variants:
        kind, _, n = name.partition("-")
        if name != "stock" and (kind not in (*OURS, *RIVALS) or not n.isdigit() or int(n) < 1):
            parser.error(f"--variants: {name!r} is not one of {'-N, '.join((*OURS, *RIVALS))}-N with N at least 1")
    if not find_spec("hyper_connections"):
        args.variants = [name for name in args.variants if not name.startswith("lucidrains")]
        print("The package hyper-connections is not installed: there are no rows of lucidrains.", file=sys.stderr)
    if args.output and args.output.exists():
        parser.error(f"--output: {args.output} exists; choose another name or remove it")
    if args.rounds < 2:
        parser.error(f"--rounds: {args.rounds} is too few for a median; use at least 2")
    result = benchmark(args)
    print(table(result))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
