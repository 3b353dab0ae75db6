# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Conversion: residual checkpoints to hyper-connected ones and back, and other libraries' parameter layouts."""

from .checkpoints import ConversionError, to_hyper_connected, to_residual
from .layouts import (
    from_algorithm_2,
    from_deepseek,
    from_lucidrains,
    from_mhc_lite,
    to_algorithm_2,
    to_lucidrains,
)

__all__ = [
    "ConversionError",
    "from_algorithm_2",
    "from_deepseek",
    "from_lucidrains",
    "from_mhc_lite",
    "to_algorithm_2",
    "to_hyper_connected",
    "to_lucidrains",
    "to_residual",
]
