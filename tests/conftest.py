# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Tests run without a network and, since pytest-xdist runs several at once, on one thread and one cache each."""

import os
import tempfile
from collections.abc import Iterator

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
