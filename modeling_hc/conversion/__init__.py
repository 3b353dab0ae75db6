# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Conversion: residual checkpoints to hyper-connected ones and back, and other libraries' parameter layouts."""

from .checkpoints import ConversionError, to_hyper_connected, to_residual

__all__ = ["ConversionError", "to_hyper_connected", "to_residual"]
