# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Tests run without a network and, since pytest-xdist runs several at once, on one thread each."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.register_assert_rewrite("contract")

import torch  # noqa: E402

torch.set_num_threads(1)
