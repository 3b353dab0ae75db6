# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Looking inside a model: what its hyper-connections learned, as tensors and pandas frames.

    measurement = measure(model, windows)            streaming statistics over a text
    recording = record(model, input_ids)             everything about one short text
    ablate_and_rescue(model, windows)                what a stream is worth

`plots` draws them; it is imported by name, since it needs matplotlib.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "ablation": ["ablate_and_rescue"],
    "connections": [
        "cancellation",
        "gains",
        "parallel_blocks",
        "second_singular_values",
        "shares",
        "unfold",
        "weight_by_distance",
    ],
    "measurement": [
        "Measurement",
        "effective_rank",
        "measure",
        "movement",
        "static_coefficients",
        "unfolding_error",
    ],
    "reading": ["describe"],
    "recording": ["Recording", "block_kinds", "block_names", "is_hyper_connected", "record"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports what is asked for: some modules need pandas, others serve without any extra."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
