# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Tests run without a network and, since pytest-xdist runs several at once, on one thread and one cache each."""

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two processes that compile the same code at once read each other's half-written files.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="inductor-"))
pytest.register_assert_rewrite("contract")

import torch  # noqa: E402
import transformers  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _verbosity() -> Iterator[None]:
    """A script that runs within a test silences transformers; the next test may listen to it."""
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Any]:
    """Runs a script of the repository in the process of the tests, and returns what a process of its own would.

    A process of its own spends seconds on its imports, so each command has one test in one.
    """

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
        path = str(Path(__file__).parents[1] / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        status: Any = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        if isinstance(status, str):  # the interpreter would print it
            status, err = 1, f"{err}{status}\n"
        return subprocess.CompletedProcess(sys.argv, status, out, err)

    return run


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Callable[[Any, Any], None]:
    """Notes what the stock model and ours did, for the table of `make reports`: `outcome(stock, ours)`."""

    def note(stock: Any, ours: Any) -> None:
        request.node.user_properties.append(("outcome", [str(stock), str(ours)]))

    return note


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reports", action="store_true", help="end with a table of the tests marked `report`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(needs_gpu)
        for mark in item.iter_markers("report"):
            item.user_properties.append(("report", list(mark.args)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints `row | what people do | the stock model | ours | result`, a line for each test marked `report`."""
    if not config.getoption("reports"):
        return
    lines = []
    for result in ("passed", "failed", "skipped"):
        for test in terminalreporter.stats.get(result, []):
            properties = getattr(test, "user_properties", [])  # none of a module that was skipped as a whole
            reason = f": {test.longrepr[2].removeprefix('Skipped: ')}" if result == "skipped" else ""
            outcomes = [value for name, value in properties if name == "outcome"] or [["", ""]]
            for name, (row, what) in properties:
                if name == "report":
                    lines += [(row, what, *outcome, result + reason) for outcome in outcomes]
    terminalreporter.section("reports")
    for line in [("row", "what people do", "stock", "ours", "test"), ("---",) * 5, *sorted(lines)]:
        terminalreporter.write_line("| " + " | ".join(map(str, line)) + " |")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marks that upstream's shared model tests carry."""
    for mark in (
        "accelerate_tests",
        "flash_attn_test",
        "flash_attn_3_test",
        "flash_attn_4_test",
        "flash_attn_all_test",
        "generate",
        "torch_compile_test",
        "torch_export_test",
    ):
        config.addinivalue_line("markers", f"{mark}: of upstream's tests")
