# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Measures on one GPU, in about fifteen minutes, what this package claims of GPUs. Run it from the repository's root:

    python -m campaigns.gpu --make_tokens TEXTS          # beforehand, anywhere: the tokens that `pair` trains on
    python -m campaigns.gpu --output runs/gpu            # on the GPU; the same command goes on with what is missing
    python -m campaigns.gpu --output runs/gpu --stages smoke micro       # some of it
    python -m campaigns.gpu --output runs/toy --toy      # all of it on a CPU, at toy sizes

Each stage is a process of its own with a time limit, so a crash or a hang ends that stage only. A line is printed as
a stage ends. Its numbers go to gpu.json in the output folder row by row, with the card and the versions; log.txt has
what the stages print. A stage that was cut off keeps its rows, but for those of another card or other versions.

    machine     the card, its driver and clocks
    smoke       the kernels at real sizes against fp64, twice for the same bits, into memory that holds NaN before;
                where they are wrong, nothing else runs
    warm        compiles what micro and the models launch, on all cores
    micro       microseconds of each kind of site, and its share of a copy's bandwidth; the boundary in other launches
    ncu         what the boundary's kernels wait for, where Nsight Compute is there; ncu.txt has all of it
    eager       training steps of OLMo-1B's shape (bf16, 4 x 2048 tokens) over the stock Llama's
    compiled    the same compiled
    decode      a token of each prompt over the stock Llama's, eager and in CUDA graphs
    pair        trains the residual Llama of 60M parameters and DHC x4, configuration/experiments/gpu-60m.yaml
    tests       the kernels' tests, in parallel
"""

import argparse
import csv
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]
RESULTS, LOG = "gpu.json", "log.txt"
PAIR = ROOT / "configuration" / "experiments" / "gpu-60m.yaml"
WORK = Path("runs/experiments")

Shape = tuple[int, int, int, str, bool]
SHAPES: list[Shape] = [  # streams, D, tokens, dtype, centered
    (4, 2048, 16384, "bfloat16", False),
    (2, 2048, 16384, "bfloat16", False),
    (4, 2048, 16384, "bfloat16", True),
    (4, 4096, 8192, "bfloat16", False),
    (4, 512, 32768, "float32", False),
    (1, 2048, 16384, "bfloat16", False),
]
TOY_SHAPES: list[Shape] = [(1, 32, 5, "bfloat16", False)]
KINDS = {"width": (False, True), "boundary": (True, True), "depth": (True, False)}  # a block before, a block after
SWEEP = [  # rows, warps, columns forward, columns backward, programs a multiprocessor
    (4, 4, 256, 128, 2),
    (4, 4, 256, 128, 1),
    (4, 4, 128, 128, 2),
    (4, 4, 256, 64, 2),
    (4, 4, 256, 128, 3),
    (8, 8, 256, 128, 1),
    (2, 2, 256, 128, 4),
    (2, 4, 512, 256, 2),
    (1, 4, 1024, 512, 2),
]
SMOKE = [  # streams, D, tokens, dtype, and the connection, tanh, centered and affine of the kernels' tests
    (4, 2048, 1000, torch.bfloat16, "dynamic", True, False, True),
    (4, 2048, 1000, torch.float32, "dynamic", True, True, True),
    (2, 2048, 999, torch.bfloat16, "dynamic", True, True, False),
    (4, 2048, 64, torch.bfloat16, "dynamic", True, False, True),
    (4, 2048, 100, torch.bfloat16, "static", True, False, True),
    (4, 2048, 1000, torch.bfloat16, "given", True, False, True),
    (3, 300, 37, torch.float16, "dynamic", False, False, True),
    (1, 512, 100, torch.float32, "dynamic", True, False, True),
]
TOY_SMOKE = [(2, 40, 3, torch.float16, "dynamic", False, False, True)]
STEPS = {False: ["dynamic-4", "dynamic-2", "static-4", "recompute-4", "reference-4", "mhc-4", "identity-4"]}
STEPS[True] = ["dynamic-4", "reference-4", "dynamic-2"]
TOY_STEPS = {False: ["dynamic-1", "reference-1", "mhc-2"], True: ["dynamic-1"]}
DECODE = ["dynamic-4", "dynamic-2"]
TOY_MODEL = {"hidden_size": 32, "intermediate_size": 32, "layers": 1, "head_size": 16, "vocab_size": 64}
TOY_MODEL |= {"batch_size": 1, "sequence": 5, "device": "cpu", "dtype": "float32"}


def environment() -> dict[str, str]:
    """Returns what rows must share to stand in one table."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, no GPU"
    return {"card": card} | {package: version(package) for package in ("torch", "triton", "transformers")}


def read(output: Path) -> dict[str, dict[str, Any]]:
    path = output / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


class Rows(dict):
    """The rows of a stage by name. Each is in the results file, which all stages share, once it is added."""

    def __init__(self, output: Path, stage: str, deadline: float = math.inf) -> None:
        self.output, self.stage, self.deadline = output, stage, deadline
        self.about = {"environment": environment()}
        before = read(output).get(stage, {})
        super().__init__(before["rows"] if before.get("environment") == self.about["environment"] else {})

    def add(self, name: str, row: Any) -> None:
        self[name] = row
        self.write()
        print(f"{self.stage} {name}: {json.dumps(row, default=str)[:400]}", flush=True)

    def write(self, **about: Any) -> None:
        from modeling_hc.records import write_json

        content = read(self.output) | {self.stage: self.about | about | {"rows": dict(self)}}
        write_json(self.output / RESULTS, content)


def machine(rows: Rows, toy: bool) -> str:
    row = {"python": platform.python_version(), "cores": os.cpu_count(), "numpy": version("numpy")}
    if not toy:
        properties = torch.cuda.get_device_properties(0)
        row |= {"multiprocessors": properties.multi_processor_count, "memory": properties.total_memory}
        fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        row["nvidia-smi"] = {fields: done.stdout.strip() or done.stderr.strip()}
    rows.add("machine", row)
    return ", ".join(f"{name} {value}" for name, value in environment().items())


def smoke(rows: Rows, toy: bool) -> str:
    sys.path.insert(0, str(ROOT / "tests"))
    from test_triton_hc import Reference, problem, results

    from modeling_hc import triton_hc

    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors hold NaN until they are written
    worst = 0.0
    for n, d, tokens, dtype, *variant in TOY_SMOKE if toy else SMOKE:
        values = problem((tokens,), n, d, dtype)
        exact = results(Reference, *values, *variant, wide=True)
        plain = results(Reference, *values, *variant)
        ours, again = (results(triton_hc, *values, *variant) for _ in range(2))
        # A gate's gradient is one sum, whose terms cancel: its error is taken of the largest such sum.
        gates = max((want.norm() for want in exact if want.numel() == 1), default=None)
        scales = [gates if want.numel() == 1 else want.norm() for want in exact]
        errors, usual = (
            [((a - b).norm() / scale).item() for a, b, scale in zip(have, exact, scales, strict=True)]
            for have in (ours, plain)
        )
        floor = 1e-4 if dtype == torch.float32 else 1e-2
        limits = [4 * u + floor * (20 if b.numel() == 1 else 1) for u, b in zip(usual, exact, strict=True)]
        shares = [e / limit if e == e else float("inf") for e, limit in zip(errors, limits, strict=True)]
        same = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
        row = {"errors": errors, "of_the_reference": usual, "of_the_limit": max(shares), "same_bits": same}
        rows.add(f"{n}x{d}, {tokens} tokens, {dtype}, {variant}", row)
        worst = max(worst, *shares)
        if not same or worst > 1:
            sys.exit(f"The kernels are wrong: {worst:.2f} of the largest error allowed, the same bits twice: {same}.")
    return f"right, {worst:.2f} of the largest error allowed, the same bits twice"


def site(kind: str, shape: Shape, tokens: int, device: str) -> dict[str, Callable[[], Any]]:
    """Returns the launches of one kind of site, forward and backward, as a model in training does them."""
    from modeling_hc import triton_hc

    n, d, _, dtype_name, centered = shape
    dtype, generator = getattr(torch, dtype_name), torch.Generator(device).manual_seed(0)

    def draw(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    def mix() -> tuple[torch.Tensor, torch.Tensor]:
        together = torch.ones(n, n + 2, device=device) / n + 0.1 * draw(tokens, n, n + 2)
        return together[..., :-1], together[..., -1]

    before, after = KINDS[kind]
    unwritten = (draw(tokens, d, dtype=dtype), *mix()) if before else (None,) * 3
    inputs = (draw(tokens, n, d, dtype=dtype), *unwritten)
    parameters: tuple[torch.Tensor | None, ...] = (None,) * 5
    read = projection = None
    grads: tuple[torch.Tensor | None, ...] = (draw(tokens, n, d, dtype=dtype), None, None, None)
    if after:
        gate, (alpha, beta) = torch.full((1,), 0.3, device=device), mix()
        parameters = (draw(n + 2, d) / d**0.5, gate, gate, alpha[0].clone(), beta[0].clone())
        read, projection = triton_hc._launch_forward(*inputs, *parameters, True, 1e-5, centered)[2:]
        grads = (grads[0], draw(tokens, d, dtype=dtype), *mix())
    saved = (*inputs, *parameters[:3], read, projection)
    return {
        "forward": lambda: triton_hc._launch_forward(*inputs, *parameters, True, 1e-5, centered),
        "backward": lambda: triton_hc._launch_backward(*saved, *grads, True, centered),
    }


@contextmanager
def launched(rows: int, warps: int, forward: int, backward: int, programs: int) -> Iterator[None]:
    """Sets the launch parameters of the kernels, for streams of two bytes."""
    from modeling_hc import triton_hc

    usual = triton_hc._sizes

    def sizes(streams: torch.Tensor, columns_per_thread: int, few: bool = False) -> dict[str, int]:
        values = usual(streams, columns_per_thread, few)
        widest = 1 << (streams.shape[-1] - 1).bit_length()
        columns = min(widest, forward if columns_per_thread == 8 else backward)
        lanes = min(32 * warps // rows, columns)
        return values if few else values | {"ROWS": rows, "num_warps": warps, "COLUMNS": columns, "LANES": lanes}

    registers = min(256, triton_hc._REGISTERS // (programs * 32 * warps))
    with mock.patch.multiple(
        triton_hc,
        ROWS=rows,
        _sizes=sizes,
        _programs_a_processor=lambda n: programs,
        _REGISTERS=registers * programs * 32 * rows,  # the launch divides it by these
    ):
        yield


def launch(kind: str, shape: Shape, tokens: int, device: str, setting: tuple[int, ...] | None = None) -> str | None:
    """Launches one kind of site once; returns what went wrong: a setting may ask for too much."""
    try:
        with launched(*setting) if setting else nullcontext():
            for call in site(kind, shape, tokens, device).values():
                call()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return repr(error)[:300]
    return None


def warm(rows: Rows, toy: bool) -> str:
    device, shapes, sweep = ("cpu", TOY_SHAPES, SWEEP[:1]) if toy else ("cuda", SHAPES, SWEEP)
    few, many = 4, 65  # the cache knows a kernel by whether tokens are few, not by their number
    jobs = [("boundary", shape, many, device, setting) for setting in sweep for shape in shapes[:2]]
    jobs += [(kind, shape, tokens, device, None) for tokens in (many, few) for shape in shapes for kind in KINDS]
    with ProcessPoolExecutor(1 if toy else min(len(jobs), os.cpu_count() or 1), get_context("spawn")) as pool:
        for job, failure in zip(jobs, pool.map(launch, *zip(*jobs, strict=True)), strict=True):
            rows.add(str(job), failure)
    return f"{len(jobs)} launches compiled, {sum(map(bool, rows.values()))} of them failed"


def timed(call: Callable[[], Any], device: str, rounds: int) -> dict[str, Any]:
    """Returns the median and the quartiles of a call's time in microseconds."""
    from modeling_hc.benchmark.measurement import mark, seconds

    call()
    if device == "cuda":
        torch.cuda._sleep(10**8)  # the launches queue up behind it
    marks = []
    for _ in range(rounds):
        start = mark(device)
        call()
        marks.append((start, mark(device)))
    low, median, high = statistics.quantiles((1e6 * seconds(*pair) for pair in marks), n=4, method="inclusive")
    return {"us": median, "quartiles": [low, high]}


def micro(rows: Rows, toy: bool) -> str:
    from modeling_hc import triton_hc

    device, shapes, sweep = ("cpu", TOY_SHAPES, SWEEP[:1]) if toy else ("cuda", SHAPES, SWEEP)
    rounds = 2 if toy else 30
    if "copy" not in rows:
        source = torch.empty(2**10 if toy else 2**30, device=device, dtype=torch.bfloat16).normal_()
        target = torch.empty_like(source)
        row = timed(lambda: target.copy_(source), device, rounds)
        rows.add("copy", row | {"bytes_per_second": 2 * source.nbytes / row["us"] * 1e6})
        del source, target
    todo = [(kind, shape, None) for shape in shapes for kind in KINDS]
    todo += [("boundary", shape, setting) for shape in shapes[:2] for setting in sweep]
    for kind, shape, setting in todo:
        n, d, tokens, dtype, centered = shape
        name = f"{kind} {n}x{d}, {tokens} tokens, {dtype}{', centered' if centered else ''}"
        name += f", launched {setting}" if setting else ""
        if name in rows:
            continue
        row: dict[str, Any] = {}
        try:
            with launched(*setting) if setting else nullcontext():
                for way, call in site(kind, shape, tokens, device).items():
                    numbers = triton_hc.traffic(n, *KINDS[kind])[way == "backward"]
                    row[way] = timed(call, device, rounds)
                    rate = numbers * tokens * d * getattr(torch, dtype).itemsize / row[way]["us"] * 1e6
                    row[way]["of_copy"] = rate / rows["copy"]["bytes_per_second"]
        except Exception as error:
            if setting is None:
                raise
            row["failed"] = repr(error)[:300]
        rows.add(name, row)
    n, d, tokens, dtype, _ = shapes[0]
    best = rows[f"boundary {n}x{d}, {tokens} tokens, {dtype}"]
    shares = ", ".join(f"{way} {best[way]['us']:.0f} us, {best[way]['of_copy']:.2f} of a copy" for way in best)
    return f"copy {rows['copy']['bytes_per_second'] / 1e12:.2f} TB/s; boundary at {n}x{d} {shares}"


def ncu(rows: Rows, toy: bool) -> str:
    if not shutil.which("ncu"):
        rows.add("ncu", {"absent": "ncu is not on the path"})
        return "absent"
    shape, device = (TOY_SHAPES[0], "cpu") if toy else (SHAPES[0], "cuda")
    # The first forward launch is of what the backward pass needs; then come two of each.
    code = f"from campaigns import gpu; print([gpu.launch('boundary', {shape}, {shape[2]}, {device!r}) for _ in 'ab'])"
    sections = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "SchedulerStats", "WarpStateStats")
    command = [
        "ncu",
        "--csv",
        "--clock-control",
        "none",
        "-k",
        "regex:_(forward|backward)_kernel",
        "-s",
        "4",
        "-c",
        "2",
    ]
    command += [word for section in sections for word in ("--section", section)]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    (rows.output / "ncu.txt").write_text(done.stdout + done.stderr)
    for line in csv.DictReader(line for line in done.stdout.splitlines() if line.startswith('"')):
        if line.get("Metric Name"):
            kernel = rows.setdefault(line["Kernel Name"], {})
            kernel[line["Metric Name"]] = f"{line['Metric Value']} {line['Metric Unit']}".strip()
    if done.returncode or not rows:
        sys.exit(f"ncu exited with {done.returncode}; ncu.txt has its output")
    return f"{sum(map(len, rows.values()))} metrics of {len(rows)} kernels"


def model_arguments(toy: bool, compiled: bool) -> argparse.Namespace:
    from modeling_hc.commands.benchmark import GPU

    values = GPU | (TOY_MODEL if toy else {}) | {"compile": compiled, "decode_tokens": 2 if toy else 16}
    return argparse.Namespace(**values)


def compare(
    rows: Rows,
    prefix: str,
    names: list[str],
    args: argparse.Namespace,
    measure: Callable[..., dict[str, Any]],
    rounds: int,
) -> None:
    """Adds a row for each variant: what `measure` returns over the stock Llama's, which takes turns with it.

    "reference-N" is "dynamic-N" without the kernels.
    """
    from modeling_hc import kernels
    from modeling_hc.benchmark.measurement import TOLERANCE, memory, profiled
    from modeling_hc.benchmark.variants import prepare, shape_of

    torch._dynamo.config.recompile_limit = 64  # the variants share the code of their forward passes
    shape, generator = shape_of(args), torch.Generator().manual_seed(0)
    inputs = torch.randint(args.vocab_size, (args.batch_size, args.sequence), generator=generator).to(args.device)
    stock = prepare("stock", shape, args, None)
    for name in ["stock", *names]:
        if prefix + name in rows:
            continue
        with kernels("reference" if name.startswith("reference") else "triton"):
            try:
                ours = name.replace("reference", "dynamic")
                variant = stock if name == "stock" else prepare(ours, shape, args, stock.model)
                row: dict[str, Any] = {}
                begun = time.monotonic()
                if prefix == "":
                    row["loss"] = variant.step(input_ids=inputs, labels=inputs, use_cache=False).loss.item()
                    if abs(row["loss"] - rows.get("stock", row)["loss"]) > TOLERANCE[args.dtype]:
                        raise ValueError(f"a loss of {row['loss']}, and the stock model's is {rows['stock']['loss']}")
                for each in (variant, stock):
                    measure(each, inputs)
                row["first_seconds"] = time.monotonic() - begun
                if prefix == "":
                    row["bytes"] = memory(variant.step, inputs)
                    variant.model.zero_grad(set_to_none=True)
                laps = [(measure(variant, inputs), measure(stock, inputs)) for _ in range(rounds)]
                for column in laps[0][0]:
                    low, median, high = statistics.quantiles(
                        (v[column] / s[column] for v, s in laps), n=4, method="inclusive"
                    )
                    spent = [statistics.median(lap[who][column] for lap in laps) for who in (0, 1)]
                    row[column] = {"ratio": median, "quartiles": [low, high], "seconds": spent[0], "stock": spent[1]}
                if prefix == "":
                    row["profile"] = profiled(variant, inputs)
            except Exception as error:
                if name == "stock":
                    raise
                row = {"failed": repr(error)[:1000]}
        variant = None
        rows.add(prefix + name, row)
        if args.device == "cuda":
            torch.cuda.empty_cache()


def ratios(rows: Rows, column: str) -> str:
    def cell(row: dict[str, Any]) -> str:
        return f"{row[column]['ratio']:.3f}" if column in row else "failed"

    return ", ".join(f"{name} {cell(row)}" for name, row in rows.items() if not name.endswith("stock"))


def steps(rows: Rows, toy: bool, compiled: bool) -> str:
    from modeling_hc.benchmark.measurement import time_step

    names = (TOY_STEPS if toy else STEPS)[compiled]
    compare(rows, "", names, model_arguments(toy, compiled), time_step, 2 if toy else 10)
    return f"steps over stock: {ratios(rows, 'step')}"


def eager(rows: Rows, toy: bool) -> str:
    return steps(rows, toy, compiled=False)


def compiled(rows: Rows, toy: bool) -> str:
    return steps(rows, toy, compiled=True)


def decode(rows: Rows, toy: bool) -> str:
    from modeling_hc.benchmark.measurement import time_decode

    for prefix, in_graphs in (("eager ", False), ("graphs ", True)):
        args = model_arguments(toy, in_graphs)

        def measure(variant: Any, inputs: torch.Tensor, tokens: int = args.decode_tokens) -> dict[str, float]:
            return time_decode(variant, inputs, tokens)

        compare(rows, prefix, ["dynamic-1"] if toy else DECODE, args, measure, 2 if toy else 10)
    return f"a token over stock: {ratios(rows, 'decode')}"


def pair(rows: Rows, toy: bool) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    from modeling_hc.experiments.results import find_run
    from modeling_hc.experiments.setup import Tokens, load_experiment, load_tokens
    from modeling_hc.experiments.training import FINISHED, run_one

    experiment, work = load_experiment(PAIR), rows.output / "work" if toy else WORK
    if toy:
        model = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
        model |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
        sizes = {"tokens": 256, "batch_size": 2, "block_size": 32, "evaluations": 1, "eval_blocks": 2}
        training = experiment.training | {"bf16": False, "warmup_steps": 1}
        experiment = replace(experiment, model=model, training=training, **sizes)
        ids = torch.randint(64, (512,)).numpy()
        tokens = Tokens(ids, dict.fromkeys(experiment.data.validation, ids), {"docs": 1.0, "wikitext2": 1.0})
    else:
        tokens = load_tokens(experiment, Path("data"), work)
    for name in experiment.variants:
        if "final" in rows.get(name, {}):
            continue
        outcome = run_one(experiment, name, 0, tokens, work, rows.output, rows.deadline - 30)
        if outcome != FINISHED:
            checkpoint = get_last_checkpoint(work / experiment.name / f"{name}-s0")
            state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
            rows.add(name, {"paused": state["global_step"], "history": state["log_history"]})
            sys.exit(f"{name} paused at step {state['global_step']} of {experiment.steps}")
        run = find_run(rows.output, experiment.name, name, 0)
        rows.add(name, {"final": run["final"], "seconds": run["evaluations"][-1]["seconds"]})
    text = next(iter(experiment.data.validation))
    return ", ".join(
        f"{name} {row['final'][text]['loss']:.4f} in {row['seconds']:.0f} s" for name, row in rows.items()
    )


def tests(rows: Rows, toy: bool) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_triton_hc.py"]
    command += ["-k", "second_derivative"] if toy else ["-m", "not slow", "-n", str(os.cpu_count()), "-W", "default"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    print(done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    summary = next((line.strip("= ") for line in reversed(lines) if re.search(r"\d (passed|failed|error)", line)), "")
    rows.add("tests", {"summary": summary, "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))]})
    if done.returncode:
        sys.exit(summary or f"pytest exited with {done.returncode}")
    return summary


STAGES: dict[str, tuple[Callable[[Rows, bool], str], int]] = {  # in order of value, with limits in seconds
    "machine": (machine, 60),
    "smoke": (smoke, 150),
    "warm": (warm, 150),
    "micro": (micro, 120),
    "ncu": (ncu, 90),
    "eager": (eager, 150),
    "compiled": (compiled, 270),
    "decode": (decode, 150),
    "pair": (pair, 330),
    "tests": (tests, 240),
}


def run_here(stage: str, output: Path, toy: bool, seconds: float) -> None:
    """Runs a stage in this process, which dies with the one that started it: that holds the other end of its stdin."""
    threading.Thread(target=lambda: (sys.stdin.read(), os.killpg(0, signal.SIGKILL)), daemon=True).start()
    start = time.monotonic()
    if toy:  # inductor would spend a minute on C++ that no GPU runs
        torch.compile = partial(torch.compile, backend="aot_eager")
    rows = Rows(output, stage, start + seconds)
    summary = STAGES[stage][0](rows, toy)
    rows.write(summary=summary, seconds=round(time.monotonic() - start, 1))


def run_stage(stage: str, output: Path, toy: bool, limit: float) -> str:
    """Runs a stage as a process of its own, and ends it with all that it started at its limit.

    Returns what went wrong, or nothing.
    """
    command = [sys.executable, "-m", "campaigns.gpu", "--output", str(output), "--stages", stage, "--here"]
    command += ["--seconds", str(limit)]
    variables = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if toy else {}
    with open(output / LOG, "a") as log:
        process = subprocess.Popen(
            command + ["--toy"] * toy,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | variables,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "cut off at its limit"
        finally:
            process.stdin.close()
    if process.returncode:
        return f"exit {process.returncode}: {(output / LOG).read_text().strip().splitlines()[-1]}"
    return ""


def run(stages: list[str], output: Path, toy: bool, seconds: float = math.inf) -> None:
    """Runs the stages that are not finished, and prints a line for each."""
    output.mkdir(parents=True, exist_ok=True)
    failed, end = [], time.monotonic() + seconds
    for stage in [name for name in STAGES if name in stages]:
        start = time.monotonic()
        before = "summary" in read(output).get(stage, {})
        problem = "" if before else run_stage(stage, output, toy, min(STAGES[stage][1], max(0, end - start)))
        took = "before" if before else f"{time.monotonic() - start:.0f} s"
        words = f"FAILED: {problem}" if problem else read(output)[stage]["summary"]
        print(f"{stage:9}{took:>7}  {words}", flush=True)
        failed += [stage] if problem else []
        if problem and stage == "smoke":
            break
    if failed:
        sys.exit(f"Not finished: {', '.join(failed)}. {output / LOG} says why; the same command tries again.")


def make_tokens(texts: Path) -> None:
    from modeling_hc.experiments.setup import load_experiment, load_tokens

    tokens = load_tokens(load_experiment(PAIR), texts, WORK)
    print(f"{len(tokens.train):,} tokens to train on, in {WORK / 'data-gpu-60m'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="folder of the results; what is there already is not done again")
    what.add_argument("--make_tokens", type=Path, metavar="TEXTS", help="make the tokens of `pair`, and stop")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help="some only")
    parser.add_argument("--toy", action="store_true", help="on a CPU, in Triton's interpreter, at toy sizes")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long, to go on later")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the one stage, in this process
    args = parser.parse_args()
    if args.make_tokens:
        return make_tokens(args.make_tokens)
    if args.here:
        return run_here(args.stages[0], args.output, args.toy, args.seconds)
    if not args.toy:
        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here; --toy runs at toy sizes on a CPU")
        if "pair" in args.stages and not (WORK / "data-gpu-60m" / "data.json").exists():
            parser.error(f"pair needs the tokens in {WORK / 'data-gpu-60m'}: --make_tokens, or --stages without it")
    run(args.stages, args.output, args.toy, args.seconds)


if __name__ == "__main__":
    main()
