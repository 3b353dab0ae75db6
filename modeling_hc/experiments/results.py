# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The numbers of an experiment's runs: EXPERIMENT/runs.jsonl in the results folder, one line a run."""

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..model_card_hc import plain
from ..records import write_text

Runs = dict[str, dict[int, dict[str, Any]]]  # variant, seed

BASELINE = "residual"
FILE = "runs.jsonl"


def load_runs(path: Path) -> Runs:
    """Returns the runs in a file by variant (the residual ones first) and seed; none where there is no file.

    Raises:
        ValueError: a line is damaged.
    """
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of {path} is damaged ({error}): delete it and repeat its run.") from error
    runs: Runs = {}
    for result in sorted(results, key=_place):
        runs.setdefault(result["variant"], {})[result["seed"]] = result
    return runs


def load_results(folder: Path) -> dict[str, Runs]:
    """Returns the runs of every experiment in a results folder.

    Raises:
        ValueError: a line of a file is damaged.
    """
    return {path.parent.name: load_runs(path) for path in sorted(folder.glob(f"*/{FILE}"))}


def find_run(folder: Path, experiment: str, variant: str, seed: int) -> dict[str, Any] | None:
    """Returns a run in a results folder, or None where it is not done.

    Raises:
        ValueError: a line of the experiment's file is damaged.
    """
    return load_runs(folder / experiment / FILE).get(variant, {}).get(seed)


def save_run(folder: Path, result: dict[str, Any]) -> None:
    """Adds a run to the file of its experiment, or replaces the run of the same variant and seed there.

    The write is atomic, and processes that end runs at the same time wait for each other.

    Raises:
        ValueError: a line of the file is damaged; the file stays as it is.
    """
    path = folder / result["experiment"] / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{FILE}.lock")):
        runs = load_runs(path)
        runs.setdefault(result["variant"], {})[result["seed"]] = plain(result)
        results = sorted((run for by_seed in runs.values() for run in by_seed.values()), key=_place)
        write_text(path, "".join(f"{json.dumps(run, allow_nan=False)}\n" for run in results))


def _place(result: dict[str, Any]) -> tuple[bool, str, int]:
    """Returns what orders the runs of an experiment; "-s" keeps the order of variants that older reports have."""
    return not result["variant"].startswith(BASELINE), f"{result['variant']}-s", result["seed"]
