# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Runs experiments: variants of hyper-connections against their residual parent, on equal data, with several seeds.

    modeling-hc experiment run llama-0.3m [--variants residual dhc-4] [--seeds 0]
    accelerate launch -m modeling_hc.commands.experiment run ...
    modeling-hc experiment evaluate llama-0.3m     HellaSwag and ARC by lm-eval
    modeling-hc experiment time llama-0.3m         a step of each variant
    modeling-hc experiment report                  all tables and figures
    modeling-hc experiment check llama-0.1m        the smallest pair, once more

`run` skips what is done, goes on with what was begun, and may be started several times at once: each takes the runs
that no other one has. A run leaves its model in runs/experiments/EXPERIMENT/VARIANT-sSEED, and its numbers as a
line of results/EXPERIMENT/runs.jsonl, which is all that `report` reads.
"""

import argparse
import gc
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from ..experiments.results import BASELINE, find_run, load_results
from ..experiments.setup import Experiment, check_seeds, load_experiment, load_tokens
from ..experiments.training import (
    CPU,
    FINISHED,
    PACKAGES,
    PAUSED,
    check_earlier,
    check_patterns,
    is_late,
    machine,
    make_model,
    run_one,
)
from ..records import command_line, program, versions, write_json
from ..training.safe_trainer import NonFiniteError, SaveError


def grid(experiment: Experiment, args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Gives variants and seeds, seed by seed, so that what is done can be compared early."""
    for seed in args.seeds if args.seeds is not None else experiment.seeds:
        for name in args.variants or experiment.variants:
            yield name, seed


def run(experiment: Experiment, args: argparse.Namespace) -> None:
    """Runs what is not done and what nobody else is at."""
    deadline = time.monotonic() + 60 * args.minutes
    state = PartialState(cpu=CPU)
    check_patterns(experiment, args.variants or experiment.variants)
    for name, seed in grid(experiment, args):
        check_earlier(experiment, name, seed, args.results, args.work)
    with state.main_process_first():
        tokens = load_tokens(experiment, args.data, args.work)
    done = partial(find_run, args.results, experiment.name)
    for name, seed in grid(experiment, args):
        lock = FileLock(args.work / experiment.name / f"{name}-s{seed}.lock")
        mine = False
        if state.is_main_process and not done(name, seed):
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
                mine = not done(name, seed)  # another process may have finished it meanwhile
            except Timeout:
                pass
        outcome = None
        if broadcast_object_list([mine])[0]:
            outcome = run_one(experiment, name, seed, tokens, args.work, args.results, deadline)
            if state.is_main_process:
                if outcome is FINISHED:
                    print(summary(done(name, seed)), flush=True)
                else:
                    print(f"{experiment.name} {name} seed {seed}: paused. The same command goes on.", flush=True)
            gc.collect()
            torch.compiler.reset()
        lock.release()
        if outcome is PAUSED or is_late(deadline):
            break
    if state.is_main_process:
        results = [done(name, seed) for name, seed in grid(experiment, args)]
        print(f"{experiment.name}: {sum(map(bool, results))} of {len(results)} runs are done.")


def summary(result: dict[str, Any]) -> str:
    final = ", ".join(f"{text} {numbers['loss']:.4f}" for text, numbers in result["final"].items())
    return f"{result['experiment']} {result['variant']} seed {result['seed']}: {final}"


def evaluate(experiment: Experiment, args: argparse.Namespace) -> None:
    """Scores the models of finished runs with `modeling-hc evaluate`, which knows where the tasks' data is."""
    folders = [args.work / experiment.name / f"{name}-s{seed}" for name, seed in grid(experiment, args)]
    folders = [folder for folder in folders if (folder / "model.safetensors").exists()]
    if experiment.of_images:
        raise ValueError(f"{experiment.name} is of images, and lm-eval asks for text: `run` measures their accuracy.")
    if not folders:
        raise ValueError(
            f"{args.work / experiment.name} holds no finished model. They are not in the repository: give `run` "
            "another --results, and then `evaluate` the same."
        )
    for folder in folders:  # the tokenizer is the experiment's
        for file in (args.work / f"data-{experiment.data.name}").glob("tokenizer*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    output = args.results / experiment.name / "lm-eval.json"
    new = output.with_suffix(".new")
    new.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "modeling_hc",
        "evaluate",
        *map(str, folders),
        "--tasks",
        *args.tasks,
        "--output",
        str(new),
    ]
    command += ["--limit", str(args.limit)] if args.limit else []
    command += ["--data", str(args.data / "eval")] if (args.data / "eval").is_dir() else []
    if subprocess.run(command).returncode:
        raise ValueError(f"The evaluation failed, see above; {output} is unchanged.")
    report = json.loads(new.read_text())
    for task in report["tasks"].values():
        del task["config"]  # prompts, and paths of this machine
    write_json(output, report)
    new.unlink()


def example(experiment: Experiment, config: PreTrainedConfig, device: str) -> dict[str, Any]:
    """Returns random inputs of a step."""
    if experiment.of_images:
        shape = experiment.batch_size, config.num_channels, config.image_size, config.image_size
        labels = torch.randint(config.num_labels, shape[:1], device=device)
        return {"pixel_values": torch.randn(shape, device=device), "labels": labels}
    ids = torch.randint(config.vocab_size, (experiment.batch_size, experiment.block_size), device=device)
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def time_steps(experiment: Experiment, args: argparse.Namespace) -> None:
    """Times steps of the first variant and of others: forward, backward and update, in turns, in one process.

    On a GPU it also counts the bytes that a step takes at most, besides weights and optimizer.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = experiment.training
    autocast = torch.autocast(device, torch.bfloat16, enabled=bool(training.get("bf16")))
    steps = {}
    baseline = next(iter(experiment.variants))
    for name in dict.fromkeys([baseline, *(args.variants or experiment.variants)]):
        model = make_model(experiment, name, 0, args.work).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        forward = torch.compile(model) if training.get("torch_compile") else model
        inputs = example(experiment, model.config, device)

        def step(forward=forward, optimizer=optimizer, inputs=inputs) -> float:
            start = time.perf_counter()
            with autocast:
                loss = forward(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            return time.perf_counter() - start

        steps[name] = step
    peaks = {}
    for name, step in steps.items():
        step()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            peaks[name] = torch.cuda.max_memory_allocated() - before
    rounds = [{name: step() for name, step in steps.items()} for _ in tqdm(range(args.rounds), disable=None)]
    ratios = {}
    for name in steps:
        low, median, high = statistics.quantiles(
            (row[name] / row[baseline] for row in rounds), n=4, method="inclusive"
        )
        seconds = statistics.median(row[name] for row in rounds)
        ratios[name] = {"ratio": median, "quartiles": [low, high], "seconds": seconds, "peak_bytes": peaks.get(name)}
        print(f"{name:24}{median:6.2f} ({low:.2f}-{high:.2f}) of {baseline}'s step, {1e3 * seconds:.0f} ms")
    record = {"baseline": baseline, "rounds": args.rounds, "steps": ratios}
    record |= {"command": command_line(), "machine": machine(), "versions": versions(*PACKAGES)}
    write_json(args.results / experiment.name / "step-time.json", record)


def report(args: argparse.Namespace) -> None:
    """Draws every table and figure from the results."""
    from ..experiments.report import write_report

    for path in write_report(args.results):
        print(path)


def check(experiment: Experiment, args: argparse.Namespace) -> None:
    """Runs the residual model and DHC x4 with a new seed, and compares with the committed results."""
    from ..experiments.report import compare

    if experiment.start is not None:
        raise ValueError(f"{experiment.name} starts from the models of {experiment.start}, and check from nothing.")
    committed = load_results(args.results).get(experiment.name, {})
    args.variants = [BASELINE, "dhc-4"]
    if any(len(committed.get(name, {})) < 2 for name in args.variants):
        raise ValueError(f"{args.results} does not hold two seeds of residual and dhc-4 of {experiment.name}.")
    args.seeds = [1 + max(seed for name in args.variants for seed in committed[name])]
    with tempfile.TemporaryDirectory() as again:
        args.results, args.minutes = Path(again), math.inf
        folder = args.work / "check"
        shutil.rmtree(folder / experiment.name, ignore_errors=True)
        args.work = folder
        run(experiment, args)
        agrees, text = compare(committed, load_results(args.results)[experiment.name])
    print(text)
    sys.exit(not agrees)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "evaluate", "time", "report", "check"])
    parser.add_argument("experiment", type=Path, nargs="?", help="YAML file; not for report")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of the texts; needed for tokens that are not made yet"
    )
    parser.add_argument("--variants", nargs="+", help="some of the experiment's")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the experiment's")
    parser.add_argument("--minutes", type=float, default=math.inf, help="run: stop after so long, to go on later")
    parser.add_argument("--tasks", nargs="+", default=["hellaswag", "arc_easy", "arc_challenge"], help="evaluate")
    parser.add_argument("--limit", type=int, help="evaluate: items of each task")
    parser.add_argument("--rounds", type=int, default=20, help="time: steps of each variant")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the numbers")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"), help="folder of tokens and models")
    args = parser.parse_args()
    disable_progress_bar()  # of every checkpoint's shards
    if args.action != "report" and args.experiment is None:
        parser.error(f"{args.action} needs the YAML file of an experiment")
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds} has to be 2 or more")
    try:
        if args.action == "report":
            return report(args)
        check_seeds(args.seeds or [])
        experiment = load_experiment(args.experiment)
        for name in args.variants or ():
            if name not in experiment.variants:
                raise ValueError(f"--variants {name} is none of {', '.join(experiment.variants)}.")
        {"run": run, "evaluate": evaluate, "time": time_steps, "check": check}[args.action](experiment, args)
    except (ValueError, NonFiniteError, SaveError) as error:
        sys.exit(f"{program()}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program()}: stopped; the same command goes on.")


if __name__ == "__main__":
    main()
