# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Tests run without a network and, since pytest-xdist runs several at once, on one thread and one cache each."""

import os
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two processes that compile the same code at once read each other's half-written files.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="inductor-"))
pytest.register_assert_rewrite("contract")

import torch  # noqa: E402

torch.set_num_threads(1)
