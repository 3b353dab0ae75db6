# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The report of `modeling-hc demo`: what two runs left in a folder, as one self-contained HTML page."""

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Folder of a run, and what the report calls it. The first is what the second is compared with.
NAMES = {"llama": "Llama", "llama-dhc4": "Llama-DHCx4"}


def render(folder: Path) -> str:
    """Renders the page.

    Args:
        folder: holds the two run folders of `NAMES` as `modeling-hc train` leaves them, evaluation.json of
            `modeling-hc evaluate`, and demo.json of `modeling-hc demo`.

    Returns:
        HTML that needs nothing outside itself. All text from the inputs is escaped.
    """
    runs = [_read(folder / name / "run.json") for name in NAMES]
    curves = [curve(_read(folder / name / "log_history.json")) for name in NAMES]
    evaluation, demo = _read(folder / "evaluation.json"), _read(folder / "demo.json")
    accuracies, task_bits = (
        [evaluation["results"]["stdlib"][key][name] for name in NAMES] for key in ("acc", "bits_per_byte")
    )
    results = [run["results"] for run in runs]
    seconds = [lines["validation"][-1][1] for lines in curves]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("demo_report.html.jinja").render(
        names=list(NAMES.values()),
        runs=runs,
        curves=curves,
        rows=_rows(runs, list(demo["connection_parameters"].values()), seconds, accuracies, task_bits),
        loss_difference=results[1]["eval_loss"] - results[0]["eval_loss"],
        time_ratio=seconds[1] / seconds[0],
        accuracy_difference=accuracies[1]["value"] - accuracies[0]["value"],
        noise=math.hypot(*(accuracy["stderr"] for accuracy in accuracies)),
        above_chance=[accuracy["value"] - 2 * accuracy["stderr"] > 0.25 for accuracy in accuracies],
        num_items=evaluation["tasks"]["stdlib"]["num_items"],
        continuations=list(zip(*(demo["samples"][name] for name in NAMES), strict=True)),
        demo=demo,
        commands=[run["command"] for run in runs] + [evaluation["command"]],
        versions=runs[0]["versions"] | {"lm_eval": evaluation["environment"]["lm_eval"]},
    )


def curve(history: list[dict[str, float]]) -> dict[str, list[tuple[float, float, float]]]:
    """Returns the losses in a Trainer's log.

    Args:
        history: its `log_history`, logged with `include_num_input_tokens_seen`.

    Returns:
        "training" and "validation", lists of (tokens, seconds, loss). Seconds are those of training only, and go on
        where a run was resumed.
    """
    curves: dict[str, list[tuple[float, float, float]]] = {"training": [], "validation": []}
    seconds = clock = evaluating = 0.0
    for entry in history:
        if "eval_loss" in entry:
            evaluating += entry["eval_runtime"]
            curves["validation"].append((entry["num_input_tokens_seen"], round(seconds, 2), entry["eval_loss"]))
        elif "loss" in entry:
            if entry["train_runtime"] < clock:  # resumed by another process, whose clock starts at 0
                clock = evaluating = 0.0
            seconds += entry["train_runtime"] - clock - evaluating
            clock, evaluating = entry["train_runtime"], 0.0
            curves["training"].append((entry["num_input_tokens_seen"], round(seconds, 2), entry["loss"]))
    return curves


def _rows(
    runs: list[dict[str, Any]],
    connection_parameters: list[int],
    seconds: list[float],
    accuracies: list[dict[str, float]],
    task_bits: list[dict[str, float]],
) -> list[tuple[str, list[str], str]]:
    """Returns the table's rows: what is measured, its value for each model, and the difference."""
    parameters = [run["parameters"] for run in runs]
    losses, perplexities, bits, token_accuracies = (
        [run["results"][f"eval_{key}"] for run in runs]
        for key in ("loss", "perplexity", "bits_per_byte", "token_accuracy")
    )
    speeds = [run["tokens_seen"] / time for run, time in zip(runs, seconds, strict=True)]
    return [
        ("Parameters", [f"{n:,}" for n in parameters], _percent(parameters)),
        ("of which in hyper-connections", [f"{n:,}" for n in connection_parameters], ""),
        ("Held-out loss, nats per token", [f"{x:.4f}" for x in losses], _difference(losses, ".4f")),
        ("Held-out perplexity", [f"{x:.2f}" for x in perplexities], _difference(perplexities, ".2f")),
        ("Held-out bits per byte", [f"{x:.4f}" for x in bits], _difference(bits, ".4f")),
        ("Held-out token accuracy", [f"{x:.2%}" for x in token_accuracies], _points(token_accuracies)),
        (
            "lm-eval stdlib accuracy (chance 25%) ± standard error",
            [f"{accuracy['value']:.2%} ± {accuracy['stderr']:.2%}" for accuracy in accuracies],
            _points([accuracy["value"] for accuracy in accuracies]),
        ),
        (
            "lm-eval stdlib bits per byte of the true continuation",
            [f"{entry['value']:.4f}" for entry in task_bits],
            _difference([entry["value"] for entry in task_bits], ".4f"),
        ),
        ("Training speed, tokens per second", [f"{x:,.0f}" for x in speeds], _percent(speeds)),
    ]


def _difference(pair: list[float], form: str) -> str:
    return _signed(f"{pair[1] - pair[0]:+{form}}")


def _percent(pair: list[float]) -> str:
    return _signed(f"{pair[1] / pair[0] - 1:+.1%}")


def _points(pair: list[float]) -> str:
    return _signed(f"{100 * (pair[1] - pair[0]):+.2f} points")


def _signed(text: str) -> str:
    return text.replace("-", "−")  # noqa: RUF001  (a minus sign as wide as the plus)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
