# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The command that measures on a GPU, at toy sizes on a CPU: it must finish there first, in one try."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton runs on Linux x86-64 only")

from campaigns import gpu
from modeling_hc import triton_hc

ROOT = Path(__file__).parents[1]
ABSENT = ("datasets", "evaluate", "lm_eval", "liger_kernel", "hyper_connections")  # a bare machine with a GPU
NCU = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
"$@" && printf '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\\n' &&
printf '"1","_forward_kernel","Duration","us","7"\\n'
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command where packages are absent, and where a stand-in for Nsight Compute runs what it is given."""
    hidden, tools = tmp_path / "hidden", tmp_path / "tools"
    hidden.mkdir()
    tools.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    (tools / "ncu").write_text(NCU.format(python=sys.executable))
    (tools / "ncu").chmod(0o755)
    variables = [f"PYTHONPATH={hidden}{os.pathsep}{ROOT}", f"PATH={tools}{os.pathsep}{os.environ['PATH']}"]
    return ["env", *variables, sys.executable, "-m", "campaigns.gpu", "--toy", "--output", str(tmp_path / "out")]


def killed_and_repeated(command: list[str], stages: list[str], after: str) -> dict[str, dict]:
    """Kills the command once the stage `after` has ended, repeats it, and returns its results."""
    command, output = [*command, "--stages", *stages], Path(command[-1])
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stdout:
            if line.startswith(after):
                break
        os.killpg(process.pid, signal.SIGKILL)
    first = json.loads((output / "gpu.json").read_text())
    assert {stage for stage in first if "summary" in first[stage]} == set(stages[: stages.index(after) + 1])

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    log = (output / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    results = json.loads((output / "gpu.json").read_text())
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == stages and all("summary" in results[stage] for stage in stages)
    for stage in stages:  # what was done is not done again
        assert ("before" in lines[stage]) == (stage in first and "summary" in first[stage])
        assert "before" not in lines[stage] or results[stage] == first[stage]
    return results


def test_a_run_that_was_killed_goes_on_with_what_is_missing(command: list[str]) -> None:
    results = killed_and_repeated(command, ["machine", "micro"], after="machine")

    rows = results["micro"]["rows"]
    n, d, tokens, _, _ = gpu.TOY_SHAPES[0]
    boundary = rows[f"boundary {n}x{d}, {tokens} tokens, bfloat16"]
    for way, numbers in (("forward", 2 * n + 2), ("backward", 3 * n + 3)):  # of D a token, in two bytes each
        rate = numbers * d * tokens * 2 / boundary[way]["us"] * 1e6
        assert boundary[way]["of_copy"] == pytest.approx(rate / rows["copy"]["bytes_per_second"])


@pytest.mark.slow
def test_all_stages_run_without_packages_that_a_bare_machine_lacks_and_resume_after_a_kill(command: list[str]) -> None:
    results = killed_and_repeated(command, list(gpu.STAGES), after="eager")

    rows = {stage: results[stage]["rows"] for stage in gpu.STAGES}
    assert not any(rows["warm"].values())
    assert rows["ncu"] == {"_forward_kernel": {"Duration": "7 us"}}
    for stage in ("eager", "compiled"):  # a fresh model is the stock model, with kernels and without
        losses = [row["loss"] for row in rows[stage].values()]
        assert len(losses) == 1 + len(gpu.TOY_STEPS[stage == "compiled"])
        assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-4)
    assert {name for name, row in rows["decode"].items() if row["decode"]["seconds"] > 0} == {
        f"{how} {name}" for how in ("eager", "graphs") for name in ("stock", "dynamic-1")
    }
    runs = (Path(command[-1]) / "gpu-60m" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["variant"] for line in runs] == ["residual", "dhc-4"] == list(rows["pair"])
    assert "1 passed" in rows["tests"]["tests"]["summary"]


def test_wrong_kernels_end_everything_and_right_ones_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    try:
        gpu.smoke(gpu.Rows(tmp_path, "smoke"), toy=True)
    finally:
        torch.use_deterministic_algorithms(False)

    right = triton_hc._launch_forward
    monkeypatch.setattr(
        triton_hc, "_launch_forward", lambda *args: (lambda r: (r[0], 1.1 * r[1], *r[2:]))(right(*args))
    )
    rows = gpu.Rows(tmp_path, "smoke")
    try:
        with pytest.raises(SystemExit, match="kernels are wrong"):
            gpu.smoke(rows, toy=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert json.loads((tmp_path / "gpu.json").read_text())["smoke"]["rows"] == rows  # for whoever looks for the fault

    monkeypatch.setattr(gpu, "run_stage", lambda stage, *_: "exit 1: the kernels are wrong")
    with pytest.raises(SystemExit, match=r"Not finished: smoke\."):
        gpu.run(["smoke", "micro"], tmp_path, toy=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("smoke")


def test_a_stage_ends_at_its_limit_and_keeps_its_rows_for_the_same_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.Rows(tmp_path, "micro").add("copy", {"bytes_per_second": 1.0})
    assert gpu.run_stage("micro", tmp_path, toy=True, limit=0) == "cut off at its limit"
    assert gpu.Rows(tmp_path, "micro") == {"copy": {"bytes_per_second": 1.0}}

    here = gpu.environment()
    monkeypatch.setattr(gpu, "environment", lambda: here | {"card": "another"})
    assert gpu.Rows(tmp_path, "micro") == {}
