# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Looking inside a model: what its hyper-connections learned, as tensors and pandas frames.

    measurement = measure(model, windows)            streaming statistics over a text
    recording = record(model, input_ids)             everything about one short text
    ablate_and_rescue(model, windows)                what a stream is worth

`plots` draws them; it is imported by name, since it needs matplotlib.
"""

from .ablation import ablate_and_rescue
from .connections import cancellation, gains, parallel_blocks, shares, unfold, weight_by_distance
from .measurement import Measurement, effective_rank, measure, movement, static_coefficients, unfolding_error
from .reading import describe
from .recording import Recording, block_names, is_hyper_connected, record

__all__ = [
    "Measurement",
    "Recording",
    "ablate_and_rescue",
    "block_names",
    "cancellation",
    "describe",
    "effective_rank",
    "gains",
    "is_hyper_connected",
    "measure",
    "movement",
    "parallel_blocks",
    "record",
    "shares",
    "static_coefficients",
    "unfold",
    "unfolding_error",
    "weight_by_distance",
]
