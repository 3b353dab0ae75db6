# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Times training steps and decoding of hyper-connected models against the stock model, in one process.

    python scripts/benchmark.py                                      # fp32, eager: the default shape
    python scripts/benchmark.py --dtype bfloat16 --compile --output results/benchmark.json

Every variant has the same blocks, weights and inputs as the stock Llama and is fresh, so its loss must equal the stock
loss; that is checked before anything is timed. The variants take turns, and each round's time is divided by the stock
model's time in the same round. The table gives the median of these ratios and their quartiles.

Columns: step, forward and backward as ratios; `saved`, the bytes kept for the backward pass as a ratio (counted with
saved-tensor hooks, each storage once, parameters left out); decode, one token at a time with a cache.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import modeling_hc
from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM


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


@dataclass
class Variant:
    name: str
    model: PreTrainedModel
    step: Callable[..., object]


def build(name: str, shape: dict[str, int], dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Builds "stock", "listing-N", "static-N" or "dynamic-N"."""
    torch.manual_seed(0)
    kind, _, n = name.partition("-")
    if kind in ("static", "dynamic"):
        fields = {"num_streams": int(n), "connection": kind, "output_rescaling": "none"}
        return HCLlamaForCausalLM._from_config(HCLlamaConfig(**shape, **fields), dtype=dtype).to(device)
    config = LlamaConfig(**shape)
    model = LlamaForCausalLM._from_config(config, dtype=dtype)
    if kind == "listing":
        model.model.layers = nn.ModuleList(
            ListedDecoderLayer(config, i, int(n)) for i in range(len(model.model.layers))
        )
    return model.to(device=device, dtype=dtype)


def saved_bytes(variant: Variant, inputs: Tensor) -> int:
    """Counts the bytes kept for the backward pass of one step, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in variant.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss
    del loss
    return sum(kept.values())


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
    cache = variant.model(input_ids=inputs[:1, :64], use_cache=True).past_key_values
    token = inputs[:1, :1]

    def decode() -> None:
        for _ in range(tokens):
            variant.model(input_ids=token, past_key_values=cache, use_cache=True)

    return {"decode": timed(decode, device)[0] / tokens}


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

    saved, losses = {}, {}
    for variant in tqdm(variants, desc="checking", disable=None):
        losses[variant.name] = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss.item()
        saved[variant.name] = saved_bytes(variant, inputs)
        tolerance = 1e-4 if args.dtype == "float32" else 2e-2
        if abs(losses[variant.name] - losses["stock"]) > tolerance:
            sys.exit(f"{variant.name} computes a loss of {losses[variant.name]}, the stock model {losses['stock']}.")
        time_step(variant, inputs, device)

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
        rows[name] = {"saved": saved[name] / saved["stock"], "loss": losses[name]}
        for column in ("step", "forward", "backward", "decode"):
            ratios = [each[name][column] / each["stock"][column] for each in rounds]
            low, median, high = statistics.quantiles(ratios, n=4)
            seconds = statistics.median(each[name][column] for each in rounds)
            rows[name][column] = {"ratio": median, "quartiles": [low, high], "seconds": seconds}
    return {
        "arguments": vars(args) | {"output": str(args.output)},
        "command": " ".join(["python", *sys.argv]),
        "environment": {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
            if device == "cpu"
            else torch.cuda.get_device_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "modeling_hc": modeling_hc.__version__,
        },
        "rows": rows,
    }


def table(result: dict) -> str:
    columns = ("step", "forward", "backward", "decode")
    lines = [f"{'':12}" + "".join(f"{column:>22}" for column in columns) + f"{'saved':>9}"]
    for name, row in result["rows"].items():
        cells = "".join(
            f"{row[c]['ratio']:>8.3f} ({row[c]['quartiles'][0]:.3f}-{row[c]['quartiles'][1]:.3f})" for c in columns
        )
        lines.append(f"{name:12}{cells}{row['saved']:>9.3f}")
    stock = result["rows"]["stock"]
    lines.append(
        f"stock: {stock['step']['seconds'] * 1e3:.0f} ms a step, {stock['decode']['seconds'] * 1e3:.2f} ms a token"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["listing-4", "static-4", "dynamic-1", "dynamic-2", "dynamic-4", "dynamic-8"],
        help="any of listing-N (the paper's listing), static-N, dynamic-N",
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
    args = parser.parse_args()
    for name in args.variants:
        kind, _, n = name.partition("-")
        if name != "stock" and (kind not in ("listing", "static", "dynamic") or not n.isdigit() or int(n) < 1):
            parser.error(f"--variants: {name!r} is not one of listing-N, static-N, dynamic-N with N at least 1")
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
