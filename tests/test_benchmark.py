# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/benchmark.py at a toy size. Its times are nobody's business here; what it counts and refuses is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
TOY = "--layers 2 --hidden_size 64 --intermediate_size 128 --batch_size 2 --sequence 70 --rounds 2 --decode_tokens 1"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *TOY.split(), *arguments], capture_output=True, text=True)


def test_hyper_connections_keep_less_for_the_backward_pass_than_the_paper_s_listing(tmp_path: Path) -> None:
    output = tmp_path / "results" / "cpu.json"
    done = run("--variants", "listing-4", "dynamic-4", "--output", str(output))
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert list(rows) == ["stock", "listing-4", "dynamic-4"]
    # Every variant computes the stock model's function, so it must have its loss.
    assert rows["dynamic-4"]["loss"] == pytest.approx(rows["stock"]["loss"], abs=1e-4)
    assert 1 < rows["dynamic-4"]["saved"] < rows["listing-4"]["saved"]
    assert "dynamic-4" in done.stdout
    again = run("--output", str(output))
    assert again.returncode == 2 and "exists" in again.stderr


def test_an_unknown_variant_is_refused_by_name() -> None:
    done = run("--variants", "dynamic-4", "residual-4")
    assert done.returncode == 2 and "'residual-4'" in done.stderr
