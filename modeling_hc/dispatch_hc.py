# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The one rule that picks how an operation is computed: compilers get the reference, which they fuse; eager mode gets
the hand-written backward passes."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .autograd_hc import depth_connection as depth_connection_by_hand
from .autograd_hc import dynamic_width_connection as dynamic_width_connection_by_hand
from .autograd_hc import width_connection as width_connection_by_hand
from .functional_hc import depth_connection as reference_depth_connection
from .functional_hc import dynamic_width_connection as reference_dynamic_width_connection
from .functional_hc import width_connection as reference_width_connection

Operation = Callable[..., Tensor | tuple[Tensor, Tensor, Tensor]]


def _dispatched(reference: Operation, by_hand: Operation) -> Operation:
    @wraps(reference)
    def operation(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        return (reference if torch.compiler.is_compiling() else by_hand)(*args, **kwargs)

    return operation


dynamic_width_connection = _dispatched(reference_dynamic_width_connection, dynamic_width_connection_by_hand)
width_connection = _dispatched(reference_width_connection, width_connection_by_hand)
depth_connection = _dispatched(reference_depth_connection, depth_connection_by_hand)
