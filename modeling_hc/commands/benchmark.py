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
import sys
import traceback
from pathlib import Path

import torch

from .. import dispatch_hc
from ..benchmark.measurement import TIMES, curves, measure
from ..benchmark.results import draw, go_on, header, line, result_of
from ..benchmark.variants import OURS, RIVALS, absent, prepare, shape_of
from ..records import write_json

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[
            *(f"{kind}-{n}" for kind in RIVALS for n in (2, 4)),
            *(f"{kind}-{n}" for kind in ("static", "dynamic", "recompute") for n in (1, 2, 4, 8)),
            *(f"{kind}-4" for kind in OURS if kind not in ("static", "dynamic", "recompute")),
        ],
        help="any connection of ours with N streams, as static-N or mhc-N, recompute-N (dynamic, with block "
        "recompute), listing-N (of the paper), "
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
