# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Per-sequence sums of negative log-likelihood, which add up over batches and processes."""

from typing import Any

import numpy as np
import torch


def block_sums(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Reduces the logits of a batch, before they are gathered, to [nll, correct, tokens] of each block: `[B, 3]`."""
    if not isinstance(logits, torch.Tensor):  # a mixture of experts also returns what its router did
        logits = next(entry for entry in logits if isinstance(entry, torch.Tensor) and entry.dim() == 3)
    if labels.dim() == 1:  # the class of a whole image
        logits, labels = logits[:, None], labels[:, None]
    else:
        logits, labels = logits[:, :-1], labels[:, 1:]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    correct = (logits.argmax(-1) == labels).sum(-1)
    return torch.stack([nll.view_as(labels).sum(-1), correct, (labels != -100).sum(-1)], dim=-1)


def joined(batches: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Returns what an evaluation collected, as one array; eval_do_concat_batches=false leaves it in batches."""
    return np.concatenate(batches) if isinstance(batches, list) else batches
