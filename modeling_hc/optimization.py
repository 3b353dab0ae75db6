# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Weight decay for training loops of one's own; transformers' Trainer does the same by itself."""

from typing import Any

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

# What the Trainer leaves out of weight decay, by name (`Trainer.get_decay_parameter_names`).
_UNDECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters of a model into those that decay and those that do not, for any optimizer.

        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=3e-4)

    Biases, norms and the static coefficients of hyper-connections do not decay; everything else does. Do not decide by
    the number of dimensions instead: `alpha_bias` is a matrix, decays towards streams that nothing carries on, and is
    no matrix for Muon either, which `model.no_weight_decay()` keeps out of such rules.

    Args:
        model: hyper-connected or not.
        weight_decay: of the first group.

    Returns:
        Two groups, each with its `params` and `weight_decay`.

    Source: Section 4 ("Implementation") of arXiv 2409.19606.
    """
    names = set(get_parameter_names(model, [nn.LayerNorm], _UNDECAYED))
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trainable if name in names], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if name not in names], "weight_decay": 0.0},
    ]
