# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Evaluates models side by side with lm-evaluation-harness.

    modeling-hc evaluate runs/residual runs/hc --tasks hellaswag arc_easy --num_fewshot 5 --output results.json

Prints a table with a column for each model, in which every model after the first also has its difference to the first;
adds the results to the model card in each model's folder; and writes, where asked for, a JSON file:

    models       [{"name": str, "path": str, "num_parameters": int, "dtype": str}], in the order given; the first is
                 what the others are compared with
    results      {task or group: {metric: {model name: {"value": float, "stderr": float or null}}}}
    tasks        {task: {"version", "num_fewshot": int, "num_items": int, "higher_is_better": {metric: bool},
                 "config": lm-eval's, with the prompts and the data set}}
    samples      only with --log_samples: {task: {model name: [{"doc_id": int, "target": any, "responses": list,
                 metric: value}]}}; the responses to a multiple-choice item are [log-likelihood, is_greedy] by choice
    environment  {"python", "lm_eval", "torch", "transformers", "datasets", "modeling_hc": version, "device": str,
                 "batch_size": int or "auto"}
    command      str
"""

import argparse
import json
import logging
import platform
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import lm_eval
import torch
from datasets import get_dataset_split_names
from huggingface_hub import EvalResult
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from pytablewriter import MarkdownTableWriter
from transformers import AutoConfig, AutoTokenizer

from .. import __version__
from ..model_card_hc import add_evaluation, plain
from ..records import command_line, program

OUR_TASKS = Path(__file__).parents[1] / "evaluation" / "tasks"
# A CPU does not run out of memory in a way that a search for the largest batch could catch.
CPU_BATCH_SIZE = 8


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with one paragraph and a non-zero status where the input is wrong."""
    args = parse_arguments(arguments)
    for chatty in ("lm_eval.api.task", "lm_eval.evaluator"):  # what they warn of is what was asked for
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if args.output and args.output.exists():
        fail(f"--output {args.output} is there already: delete it, or name another file.")
    check_device(args.device)
    names = model_names(args.models)
    for path in args.models:
        check_model(path)
    tasks = load_tasks(args.tasks, args.data, args.num_fewshot or 0)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)

    batch_size = CPU_BATCH_SIZE if args.batch_size == "auto" and args.device == "cpu" else args.batch_size
    outputs = {}
    for name, path in zip(names, args.models, strict=True):
        print(f"\n{name}", flush=True)
        outputs[name] = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": path, "dtype": args.dtype, "backend": "causal", "use_safetensors": True},
            tasks=tasks,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            batch_size=batch_size,
            device=args.device,
            log_samples=args.log_samples,
            task_manager=task_manager(all_tasks=False),
        )
    if None in outputs.values():  # under `accelerate launch` only the main process has results
        return

    report = {
        "models": [
            {
                "name": name,
                "path": path,
                "num_parameters": outputs[name]["config"]["model_num_parameters"],
                "dtype": str(outputs[name]["config"]["model_dtype"]),
            }
            for name, path in zip(names, args.models, strict=True)
        ],
        "results": merge_results(outputs),
        "tasks": describe_tasks(outputs[names[0]]),
        **({"samples": merge_samples(outputs)} if args.log_samples else {}),
        "environment": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("lm_eval", "torch", "transformers", "datasets")},
            "modeling_hc": __version__,
            "device": args.device,
            "batch_size": batch_size,
        },
        "command": command_line() if arguments is None else shlex.join(["modeling-hc", "evaluate", *arguments]),
    }
    print("\n" + table(report))
    if args.output:
        with args.output.open("x") as file:
            json.dump(plain(report), file, indent=1, allow_nan=False)
        print(f"Results: {args.output}")
    for name, path in zip(names, args.models, strict=True):
        if add_evaluation(path, card_results(report, name, args.limit)):
            print(f"Model card: {Path(path) / 'README.md'}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL [MODEL ...] --tasks TASK [TASK ...] [options]   (--help lists them)",
        description="Evaluates models side by side with lm-evaluation-harness.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folder, or name on the Hub; the first is compared with"
    )
    parser.add_argument("--tasks", nargs="+", required=True, help="`paper`, `stdlib`, or any task or group of lm-eval")
    parser.add_argument("--num_fewshot", type=at_least(0), help="examples before each item (default: the task's own)")
    parser.add_argument("--limit", type=at_least(1), help="evaluate the first LIMIT items of each task only")
    parser.add_argument("--batch_size", type=size_or_auto, default="auto", help="a number, or auto (default)")
    parser.add_argument("--data", type=Path, help="folder of local data sets, one sub-folder for each task")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--log_samples", action="store_true", help="write every item's scores to the JSON file too")
    parser.add_argument(
        "--device", default=default_device(), help="such as cpu or cuda:0 (default: an accelerator if there is one)"
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    return parser.parse_args(arguments)


def at_least(minimum: int) -> Any:
    """Returns a parser of whole numbers that are not below a minimum."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return number


def size_or_auto(text: str) -> int | str:
    """Parses `auto` or a number."""
    return text if text == "auto" else at_least(1)(text)


def default_device() -> str:
    """Returns the kind of accelerator that is there, or cpu."""
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


def fail(message: str) -> NoReturn:
    """Ends the program with a paragraph that says what is wrong and what to do."""
    raise SystemExit(f"{program()}: {message}")


def check_device(device: str) -> None:
    """Ends the program unless the device is there: lm-eval would silently take another."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {device} cannot be used here: {first_line(error)} Leave it out to use {default_device()}.")


def model_names(paths: list[str]) -> list[str]:
    """Returns a short name for each model, or what was given where short names are not unique."""
    if len(set(paths)) < len(paths):
        fail(f"The same model is given twice: {' '.join(paths)}. Give each once.")
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else paths


def check_model(path: str) -> None:
    """Ends the program unless a model has a configuration, weights, and a tokenizer that fits."""
    folder = Path(path)
    if folder.is_dir():
        for what, pattern in (("config.json", "config.json"), ("weights", "*.safetensors")):
            if not any(folder.glob(pattern)):
                fail(f"Model {path} holds no {what} ({pattern}): give a folder that save_pretrained left.")
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # each of many kinds of broken files has its own exception
        fail(
            f"Model {path}: {'' if folder.is_dir() else 'there is no such folder, and not on the Hub either: '}"
            f"{first_line(error)} Give a folder with configuration, weights and tokenizer, as save_pretrained leaves "
            "them, or the name of a model on the Hub (which needs a network)."
        )
    vocab_size = config.get_text_config().vocab_size
    if tokenizer.vocab_size > vocab_size:
        fail(
            f"The tokenizer of model {path} has {tokenizer.vocab_size} tokens, more than the model's vocab_size of "
            f"{vocab_size}: they do not belong together. Save the tokenizer that the model was trained with."
        )
    if tokenizer.bos_token is None and tokenizer.eos_token is None:
        fail(
            f"The tokenizer of model {path} has neither a beginning- nor an end-of-text token, and lm-eval begins "
            "texts without a context with one. Load it, set the eos_token that the model was trained with, and save "
            "it there with save_pretrained."
        )


@cache
def task_manager(all_tasks: bool) -> TaskManager:
    """Returns lm-eval's tasks with ours, or only ours: to find all of lm-eval's takes many seconds."""
    return TaskManager(include_path=str(OUR_TASKS), include_defaults=all_tasks)


def load_tasks(names: list[str], data: Path | None, num_fewshot: int) -> list[Task | Group]:
    """Loads the tasks with their data, or ends the program, before any model is loaded."""
    manager = task_manager(all_tasks=not set(names) <= set(task_manager(all_tasks=False).all_subtasks))
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, n=3) or ["paper", "stdlib"]
            fail(
                f"--tasks {name}: lm-eval knows no task of this name. Near: {', '.join(near)}. `lm_eval ls tasks` "
                "lists all; `paper` and `stdlib` are ours."
            )
    specs: list[Any] = list(dict.fromkeys(names))
    if data:
        leaves = dict.fromkeys(leaf for name in specs for leaf in leaf_tasks(manager, name))
        specs = [{"group": "local", "task": [with_local_data(manager, leaf, data) for leaf in leaves]}]
    try:
        loaded = manager.load(specs)
    except OSError as error:
        fail(
            f"The data of {' '.join(names)} cannot be read: {first_line(error)} Without a network, give local copies "
            "with --data FOLDER (one sub-folder for each task), or use --tasks stdlib, which needs none."
        )
    except Exception as error:  # a wrong column, a duplicate task, a broken file: each has its own exception
        fail(f"Cannot load --tasks {' '.join(names)}: {type(error).__name__}: {first_line(error)}")
    for task in loaded["tasks"].values():
        if num_fewshot >= len(task.sampler.df):
            fail(f"--num_fewshot {num_fewshot} is too many: {task.task_name} has {len(task.sampler.df)} examples.")
    inner = {child for children in loaded["group_map"].values() for child in children}
    return [item for name, item in (loaded["groups"] | loaded["tasks"]).items() if name not in inner]


def leaf_tasks(manager: TaskManager, spec: str | dict[str, Any]) -> Iterable[str]:
    """Yields the names of the tasks in a task, group or tag."""
    if isinstance(spec, str) and spec in manager.all_tags:
        children: Any = sorted(manager.task_index[spec].tags)
    else:
        children = (manager.task_index[spec].cfg if isinstance(spec, str) else spec)["task"]
    if isinstance(children, str):
        yield children
    else:
        for child in children:
            yield from leaf_tasks(manager, child)


def with_local_data(manager: TaskManager, name: str, data: Path) -> dict[str, Any]:
    """Returns a task that reads its stock data set's columns from a folder; a task that builds its own as it is."""
    stock = manager.task_index[name].cfg
    if "custom_dataset" in stock:
        return {"task": name}
    folder = data / name
    try:
        found = get_dataset_split_names(str(folder)) if folder.is_dir() else []
    except Exception as error:  # an empty folder or a broken file: each has its own exception
        fail(f"--data: cannot read {folder}: {first_line(error)}")
    # lm-eval looks for every split that a task names, needed or not.
    splits = {key: stock.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
    splits = {key: split if split in found else None for key, split in splits.items()}
    if not (splits["validation_split"] or splits["test_split"]):
        fail(
            f"--data {data} has no {name}/ with the split {stock.get('test_split') or stock.get('validation_split')} "
            f"that this task is scored on (found: {', '.join(found) or 'nothing'}): put it there as parquet or jsonl, "
            "in the columns of the task's data set on the Hub, or leave the task out."
        )
    # Only where lm-eval knows that the examples come from the scored split does it keep an item out of its own prompt.
    if not (splits["training_split"] or splits["validation_split"]):
        splits["fewshot_split"] = splits["test_split"]
    return {
        "task": name,
        "dataset_path": str(folder.resolve()),
        "dataset_name": None,
        "dataset_kwargs": None,
        **splits,
    }


def merge_results(outputs: dict[str, Any]) -> dict[str, Any]:
    """Returns task -> metric -> model -> value and standard error, from lm-eval's output for each model."""
    merged: dict[str, Any] = {}
    for model, output in outputs.items():
        for task, values in output["results"].items():
            for key, value in values.items():
                metric, _, filter_name = key.partition(",")
                if not filter_name or metric.endswith("_stderr"):
                    continue
                stderr = values.get(f"{metric}_stderr,{filter_name}")
                name = metric if filter_name == "none" else key
                entry = {"value": value, "stderr": stderr if isinstance(stderr, float) else None}
                merged.setdefault(task, {}).setdefault(name, {})[model] = entry
    return merged


def merge_samples(outputs: dict[str, Any]) -> dict[str, Any]:
    """Returns task -> model -> what the model answered to each item and how it scored, in the order of the items."""
    merged: dict[str, Any] = {}
    for model, output in outputs.items():
        for task, samples in output["samples"].items():
            merged.setdefault(task, {})[model] = [
                {
                    "doc_id": sample["doc_id"],
                    "target": sample["target"],
                    "responses": sample["filtered_resps"],
                    **{metric: sample[metric] for metric in sample["metrics"]},
                }
                for sample in sorted(samples, key=lambda sample: sample["doc_id"])
            ]
    return merged


def describe_tasks(output: dict[str, Any]) -> dict[str, Any]:
    """Returns what lm-eval ran for each task, which is the same for every model."""
    return {
        task: {
            "version": output["versions"].get(task),
            "num_fewshot": output["n-shot"][task],
            "num_items": output["n-samples"][task]["effective"],
            "higher_is_better": output["higher_is_better"][task],
            "config": config,
        }
        for task, config in output["configs"].items()
    }


def table(report: dict[str, Any]) -> str:
    """Returns the results as a Markdown table: value ± standard error (difference to the first); arrows: better."""
    names = [model["name"] for model in report["models"]]
    rows = []
    for task, metrics in report["results"].items():
        higher_is_better = report["tasks"].get(task, {}).get("higher_is_better", {})
        for metric, values in metrics.items():
            arrow = {True: " ↑", False: " ↓"}.get(higher_is_better.get(metric), "")
            cells = []
            for name in names:
                value, stderr = values[name]["value"], values[name]["stderr"]
                cell = f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None else "")
                cells.append(cell if name == names[0] else f"{cell} ({value - values[names[0]]['value']:+.4f})")
            rows.append([task, metric + arrow, *cells])
    return MarkdownTableWriter(headers=["task", "metric", *names], value_matrix=rows, margin=1).dumps()


def card_results(report: dict[str, Any], name: str, limit: int | None) -> list[EvalResult]:
    """Returns a model's results in the form of its model card."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            metric_type=metric,
            metric_value=values[name]["value"],
            metric_args={
                "num_fewshot": report["tasks"][task]["num_fewshot"],
                **({"limit": limit} if limit else {}),
                **({"stderr": values[name]["stderr"]} if values[name]["stderr"] is not None else {}),
            },
        )
        for task, metrics in report["results"].items()
        if task in report["tasks"]
        for metric, values in metrics.items()
    ]


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, ended by a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:") + "."


if __name__ == "__main__":
    main()
