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
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from ..analysis.recording import connections
from ..experiments.results import BASELINE, FILE, find_run, load_results, save_run
from ..experiments.setup import Experiment, Tokens, Variant, check_seeds, load_experiment, load_tokens
from ..health import health
from ..hyper_connections import CONNECTIONS, JointHyperConnection
from ..losses import block_sums
from ..records import command_line, program, versions, write_json
from ..training.safe_trainer import UNFINISHED, NonFiniteError, SafeTrainer, SaveError, last_checkpoint

CPU = not torch.accelerator.is_available()
FINISHED, PAUSED = "finished", "paused"
MADE_FROM = "made-from.json"
MEASURES = ("bits_per_byte", "accuracy")
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


class ExperimentTrainer(SafeTrainer):
    """A SafeTrainer that exempts a variant's `undecayed` parameters from weight decay."""

    undecayed: str | None = None

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not (self.undecayed and re.search(self.undecayed, name))]


class Notes(TrainerCallback):
    """Logs training time and connection health, and stops the run at a deadline.

    Args:
        inputs: token ids or pixels, for `health`.
        deadline: of `time.monotonic`; then the run is saved and stops.
    """

    def __init__(self, inputs: torch.Tensor, deadline: float) -> None:
        self.inputs = inputs
        self.deadline = deadline
        self.seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._start
        if is_late(self.deadline) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = round(self.seconds, 3)

    def on_evaluate(
        self, args: TrainingArguments, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any
    ) -> None:
        values = {name: round(value, 5) for name, value in health(model, self.inputs).items()}
        state.log_history[-1]["health"] = values


def is_late(deadline: float) -> bool:
    """Returns whether the main process is beyond a deadline; all processes get its answer."""
    return deadline < math.inf and broadcast_object_list([time.monotonic() > deadline])[0]


class Bar(TrainerCallback):
    """One line of progress; the Trainer's own would print every step's loss."""

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        label = args.run_name if state.is_world_process_zero else None
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=label, disable=label is None, leave=False
        )

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        self.bar.set_postfix({key: f"{logs[key]:.3f}" for key in ("loss", "eval_nll") if key in logs})

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def auto_class(experiment: Experiment) -> type:
    return AutoModelForImageClassification if experiment.of_images else AutoModelForCausalLM


def make_model(experiment: Experiment, name: str, seed: int, work: Path) -> PreTrainedModel:
    """Builds a variant's model, or loads the one that the experiment starts from into its configuration."""
    variant = experiment.variants[name]
    config = experiment.config(name)
    set_seed(seed)
    if experiment.start is None:
        model = auto_class(experiment).from_config(config)
    else:
        start = work / f"{experiment.start}-s{seed}"
        if not (start / "model.safetensors").exists():
            raise ValueError(f"{experiment.name} starts from {start}, which is not there: run that experiment first.")
        model = auto_class(experiment).from_pretrained(start, config=config, dtype=torch.float32)
    if not variant.home_stream:
        for connection in connections(model):
            read = connection.bias.data[: connection.num_streams]
            read.fill_(-math.log(connection.num_streams - 1))
    for key, parameter in model.named_parameters():
        if variant.freeze and re.search(variant.freeze, key):
            parameter.requires_grad_(False)
    return model


def check_patterns(experiment: Experiment, names: Iterable[str]) -> None:
    """Looks before the first run whether `freeze`, `undecayed` and `home_stream` of these variants fit their models.

    Raises:
        ValueError: a pattern matches no parameter, `freeze` matches all, or no connection has a home stream.
    """
    for name in names:
        variant = experiment.variants[name]
        config = experiment.config(name)
        connection = CONNECTIONS.get(getattr(config, "connection", "none"), nn.Module)
        if not (variant.home_stream or issubclass(connection, JointHyperConnection)):
            raise ValueError(f"home_stream=false of variant {name} is for the joint variants, such as connection=mhc.")
        if not (variant.freeze or variant.undecayed):
            continue
        with torch.device("meta"):
            keys = [key for key, _ in auto_class(experiment).from_config(config).named_parameters()]
        for field in ("freeze", "undecayed"):
            pattern = getattr(variant, field)
            matched = sum(bool(re.search(pattern, key)) for key in keys) if pattern else None
            if matched == 0 or (field == "freeze" and matched == len(keys)):
                many = "every" if matched else "no"
                raise ValueError(
                    f"{field}={pattern!r} of variant {name} matches {many} parameter, such as {keys[-1]}."
                )


def make_trainer(
    experiment: Experiment, name: str, seed: int, tokens: Tokens, work: Path, deadline: float
) -> ExperimentTrainer:
    """Builds the trainer of one run. Runs of a seed see the same blocks in the same order."""
    variant = experiment.variants[name]
    processes = PartialState().num_processes
    if experiment.batch_size % processes:
        raise ValueError(f"batch_size={experiment.batch_size} of {experiment.name} cannot be shared by {processes}.")
    every = experiment.steps // experiment.evaluations
    args = TrainingArguments(
        **{
            "output_dir": str(work / experiment.name / f"{name}-s{seed}"),
            "run_name": f"{experiment.name} {name} seed {seed}",
            "seed": seed,
            "max_steps": experiment.steps,
            "per_device_train_batch_size": experiment.batch_size // processes,
            "per_device_eval_batch_size": experiment.batch_size // processes,
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_steps": 4 * every,
            "save_total_limit": 1,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "report_to": "none",
            "use_cpu": CPU,
            "ddp_find_unused_parameters": False,
            **experiment.training,
            **variant.training,
        }
    )
    main_text = next(iter(tokens.validation))
    held_out = experiment.blocks(tokens.validation[main_text], experiment.eval_blocks)
    model = make_model(experiment, name, seed, work)
    for_health = torch.stack([held_out[i][model.main_input_name] for i in range(min(4, len(held_out)))])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nll, correct, count = prediction.predictions.sum(0, dtype=np.float64)
        return {"nll": nll / count} | also(tokens, main_text, nll / count, correct / count)

    trainer = ExperimentTrainer(
        model=model,
        args=args,
        train_dataset=experiment.blocks(tokens.train),
        eval_dataset=held_out,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=block_sums,
        callbacks=[Notes(for_health, deadline), Bar()],
    )
    trainer.undecayed = variant.undecayed
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def also(tokens: Tokens, text: str, nll: float, accuracy: float) -> dict[str, float]:
    """Returns the measure that a report shows beside the loss: bits per byte of a text, or accuracy on images."""
    if text in tokens.tokens_per_byte:
        return {"bits_per_byte": nll / math.log(2) * tokens.tokens_per_byte[text]}
    return {"accuracy": accuracy}


def run_one(
    experiment: Experiment, name: str, seed: int, tokens: Tokens, work: Path, results: Path, deadline: float
) -> str:
    """Trains one variant with one seed, on from its last checkpoint, and saves its numbers when it is done."""
    trainer = make_trainer(experiment, name, seed, tokens, work, deadline)
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        write_json(folder / MADE_FROM, settings(experiment, name))
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if trainer.state.global_step < experiment.steps:
        return PAUSED
    history = list(trainer.state.log_history)
    trainer.save_model()
    final = {}
    for text, ids in tokens.validation.items():
        blocks = experiment.blocks(ids, experiment.final_blocks)
        metrics = trainer.evaluate(blocks)
        loss, accuracy = metrics["eval_nll"], metrics.get("eval_accuracy", math.nan)
        final[text] = {"loss": loss, **also(tokens, text, loss, accuracy)}
        if experiment.of_images:
            final[text]["images"] = len(blocks)
        else:
            final[text]["tokens"] = len(blocks) * (experiment.block_size - 1)
    if trainer.is_world_process_zero():
        save_run(results, describe(experiment, name, seed, trainer, history, final))
    return FINISHED


def settings(experiment: Experiment, name: str) -> dict[str, Any]:
    """Returns what makes a variant's runs what they are."""
    variant: Variant = experiment.variants[name]
    tokens_per_step = experiment.batch_size * experiment.block_size
    return {
        "settings": {"start": experiment.start, **asdict(variant)},
        "model": json.loads(json.dumps(experiment.config(name).to_diff_dict())),  # numbers of classes become text
        "training": experiment.training | variant.training,
        "tokens": experiment.steps * tokens_per_step,
        "tokens_per_step": tokens_per_step,
    }


def check_same(experiment: Experiment, name: str, before: dict[str, Any], place: str, remove: str) -> None:
    """Compares the settings of an earlier run with the experiment's; of other versions' fields those that both have.

    Args:
        experiment: as it is now.
        name: of the variant.
        before: what was kept of the earlier run.
        place: where that was, for the message.
        remove: what to delete to repeat the run, for the message.

    Raises:
        ValueError: they differ.
    """
    before, now = dict(before), settings(experiment, name)
    before["settings"] = asdict(Variant()) | before["settings"]
    for part in ("model", "training"):
        both = (before[part].keys() & now[part].keys()) - {"transformers_version"}
        before[part], now[part] = ({key: values[part][key] for key in sorted(both)} for values in (before, now))
    for part, value in now.items():
        if before[part] != value:
            raise ValueError(
                f"{place} is of a run with {part} {before[part]}, and {experiment.name} now has {value}. Give what "
                f"changed another name, or delete {remove}."
            )


def check_earlier(experiment: Experiment, name: str, seed: int, results: Path, work: Path) -> None:
    """Looks whether the numbers and checkpoints of a run, where there are any, are of the experiment as it is now.

    Raises:
        ValueError: they are not.
    """
    if result := find_run(results, experiment.name, name, seed):
        check_same(experiment, name, result, f"{name}-s{seed} in {results / experiment.name / FILE}", "its line")
    path = work / experiment.name / f"{name}-s{seed}" / MADE_FROM
    if path.exists():
        check_same(experiment, name, json.loads(path.read_text(encoding="utf-8")), str(path), str(path.parent))


def describe(
    experiment: Experiment, name: str, seed: int, trainer: Trainer, history: list[dict], final: dict[str, Any]
) -> dict[str, Any]:
    """Returns everything that is kept of a run."""
    made_from = settings(experiment, name)
    blocks = len(trainer.train_dataset)
    evaluations = [
        {
            "tokens": entry["step"] * made_from["tokens_per_step"],
            "seconds": entry["seconds"],
            "loss": round(entry["eval_nll"], 6),
            **{key: round(entry[f"eval_{key}"], 6) for key in MEASURES if f"eval_{key}" in entry},
            "health": entry["health"],
        }
        for entry in history
        if "eval_nll" in entry
    ]
    return {
        "experiment": experiment.name,
        "variant": name,
        "seed": seed,
        **made_from,
        "parameters": trainer.model.num_parameters(),
        "epochs": round(experiment.steps * experiment.batch_size / blocks, 3),
        "final": final,
        "evaluations": evaluations,
        "losses": [round(entry["loss"], 4) for entry in history if "loss" in entry],
        "command": command_line(),
        "processes": trainer.args.world_size,
        "machine": machine(),
        "versions": versions(*PACKAGES),
    }


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"{platform.system()} {platform.machine()}, {device}"


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
        low, median, high = statistics.quantiles((row[name] / row[baseline] for row in rounds), n=4)
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
