# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The results file, and the table and figure that are made of it."""

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers

from .. import __version__, dispatch_hc
from ..records import command_line
from .measurement import TIMES


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
            "modeling_hc": __version__,
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
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=3)
    picture = files[0].parent / "benchmark.png"
    figure.savefig(picture, dpi=120)
    return picture
