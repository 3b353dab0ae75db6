# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The one rule that picks how an operation is computed: compilers get the reference, which they fuse; eager mode gets
the hand-written backward passes."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .autograd_hc import depth_connection as depth_connection_by_hand
from .autograd_hc import projection as projection_by_hand
from .autograd_hc import width_connection as width_connection_by_hand
from .functional_hc import depth_connection as reference_depth_connection
from .functional_hc import projection as reference_projection
from .functional_hc import width_connection as reference_width_connection


def _dispatched(reference: Callable[..., Tensor], by_hand: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(reference)
    def operation(*args: Any, **kwargs: Any) -> Tensor:
        return (reference if torch.compiler.is_compiling() else by_hand)(*args, **kwargs)

    return operation


projection = _dispatched(reference_projection, projection_by_hand)
width_connection = _dispatched(reference_width_connection, width_connection_by_hand)
depth_connection = _dispatched(reference_depth_connection, depth_connection_by_hand)
