# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Prints what model recipes cost: parameters, forward FLOPs a token, and training memory by part.

    modeling-hc info olmo-1b olmo-1b-dhc4
    modeling-hc info --json olmoe-1b-7b-dhc4
    modeling-hc info olmoe-1b-7b-dhc4 --connection dynamic mhc identity

Everything is counted by running the model without memory (on the meta device, or with fake tensors); nothing is
estimated by a formula, and a model of any size takes seconds.
"""

import argparse
import json
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations import moe

from ..hyper_connections import CONNECTIONS
from ..loading_hc import is_connection
from ..recipes import find_recipe, load_recipe

# Forward GFLOPs a token: in all, and in hyper-connections. Source: Table 8 of arXiv 2409.19606.
TABLE_8 = {
    "olmo-1b": (2.3536, 0.0),
    "olmo-1b-shc2": (2.3545, 0.0010),
    "olmo-1b-shc4": (2.3566, 0.0031),
    "olmo-1b-dhc2": (2.3554, 0.0020),
    "olmo-1b-dhc4": (2.3583, 0.0049),
    "olmo-7b": (13.3647, 0.0),
    "olmo-7b-dhc4": (13.3844, 0.0197),
    "olmoe-1b-7b": (2.3580, 0.0),
    "olmoe-1b-7b-dhc4": (2.3629, 0.0049),
}

PARAMETERS = (
    "Parameters: all, in hyper-connections, in one of these (a block's), and more than the residual parent has"
)
FLOPS = """Forward GFLOPs a token (a multiplication and an addition are two), Table 8 of the paper beside them
  products  matrix products without attention's, counted by torch's FlopCounterMode
  scores    attention's products of queries, keys and values, for all pairs of positions at the context length
  small     elementwise results and reduced elements (a fused multiply-add is two) that do not grow with the context;
            without softmax and fused norms
  HC adds   products and small operations more than the residual parent's
Table 8's totals are the products. Its static hyper-connections are ours, but for the residual additions that they
replace. Its dynamic ones are less than projecting all N streams takes, which ours have: 2 D N (N+2) a block."""
MEMORY = """Training memory in GiB, in mixed precision as with the Trainer's --bf16, without gradient checkpointing
  weights, gradients, AdamW    in fp32; AdamW has two moments
  bf16 copies                  of the weights, and what else a forward pass keeps whatever the batch
  MiB a token                  kept by the forward pass and the loss for the backward pass, at the context length
On top come the peak within the backward pass, workspaces and the allocator's rest."""


@dataclass(frozen=True)
class ModelInfo:
    """The costs of one recipe; parameters are numbers of elements, memory is in bytes."""

    recipe: str
    parameters: int
    parameters_in_hyper_connections: int
    parameters_in_one_connection: int
    parameters_over_residual: int
    context_length: int
    flops_products: float
    flops_scores: float
    flops_small: float
    flops_over_residual: float
    memory_weights: int
    memory_gradients: int
    memory_adamw: int
    memory_bf16_copies: int
    memory_activations_per_token: int


class SmallOperations(TorchDispatchMode):
    """Counts elementwise operations and reductions, which FlopCounterMode leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags and func is not torch.ops.aten.clone.default:
            self.count += result.numel() * (2 if "addcmul" in func.name() else 1)
        elif torch.Tag.reduction in func.tags:
            self.count += args[0].numel()
        return result


def model_info(path: Path, connection: str | None = None) -> ModelInfo:
    """Counts the costs of a recipe.

    Args:
        path: of the recipe.
        connection: in the place of its own.

    Raises:
        ValueError: the recipe cannot be read, or cannot have this connection.
    """
    config = load_recipe(path)
    if not hasattr(config, "vocab_size"):
        raise ValueError(f"{path.stem} has model_type={config.model_type!r}, and only language models are counted.")
    if connection is not None:
        if not hasattr(config, "connection"):
            raise ValueError(f"{path.stem} is residual and has no connection to replace by {connection!r}.")
        config.connection = connection
        config.validate_values()
    parent = residual_parent(config)
    sizes = parameter_counts(config)
    one = next((name.rpartition(".")[0] for name in sizes if is_connection(name)), None)
    products, scores, small = forward_flops(config)
    parent_products, _, parent_small = forward_flops(parent)
    copies, activations = saved_for_backward(config)
    return ModelInfo(
        recipe=path.stem if connection is None else f"{path.stem} {connection}",
        parameters=sum(sizes.values()),
        parameters_in_hyper_connections=sum(size for name, size in sizes.items() if is_connection(name)),
        parameters_in_one_connection=sum(size for name, size in sizes.items() if name.rpartition(".")[0] == one),
        parameters_over_residual=sum(sizes.values()) - sum(parameter_counts(parent).values()),
        context_length=config.max_position_embeddings,
        flops_products=products,
        flops_scores=scores,
        flops_small=small,
        flops_over_residual=products + small - parent_products - parent_small,
        memory_weights=4 * sum(sizes.values()),
        memory_gradients=4 * sum(sizes.values()),
        memory_adamw=8 * sum(sizes.values()),
        memory_bf16_copies=copies,
        memory_activations_per_token=activations,
    )


def residual_parent(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the residual configuration of the same sizes, for a residual one itself."""
    parent_class = CONFIG_MAPPING[getattr(config, "parent_model_type", config.model_type)]
    return parent_class(**{field.name: getattr(config, field.name) for field in fields(parent_class)})


def parameter_counts(config: PreTrainedConfig) -> dict[str, int]:
    """Returns the number of elements of every parameter, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@torch.no_grad()
def forward_flops(config: PreTrainedConfig) -> tuple[float, float, float]:
    """Returns the FLOPs a token of products, attention scores and small operations.

    What attention does to all pairs of positions is what grows with their number, so two lengths tell it apart.
    """
    counts = []
    with torch.device("meta"):
        # FlopCounterMode counts neither fused attention nor the grouped products of experts.
        model = AutoModelForCausalLM.from_config(
            deepcopy(config), attn_implementation="eager", experts_implementation="batched_mm"
        )
        for length in (config.max_position_embeddings // 2, config.max_position_embeddings):
            tokens = torch.zeros(1, length, dtype=torch.long)
            mask = torch.zeros(1, 1, length, length)  # without one, upstream looks into the tokens' positions
            with SmallOperations() as small, FlopCounterMode(display=False) as products:
                decoded = model.base_model(tokens, attention_mask=mask, use_cache=False).last_hidden_state
                model.get_output_embeddings()(decoded)
            counts.append((products.get_total_flops() / length, small.count / length))
    (half_products, half_small), (full_products, full_small) = counts
    scores = 2 * (full_products - half_products)
    return full_products - scores, scores, 2 * half_small - full_small


def saved_for_backward(config: PreTrainedConfig) -> tuple[int, int]:
    """Returns the bytes that a training step's forward pass keeps: whatever the batch, and for each token of it."""
    length = config.max_position_embeddings
    config = deepcopy(config)
    config.output_router_logits = False  # the load-balancing loss, which keeps next to nothing, counts values
    kept = []
    # The grouped product has no shape rule in fp32; upstream's replacement for it saves the same tensors.
    with FakeTensorMode(), patch.object(moe, "_can_use_grouped_mm", return_value=False):
        model = AutoModelForCausalLM.from_config(config).train()
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        for batch_size in (1, 2):
            storages = {}

            def save(tensor: Tensor, storages: dict = storages) -> Tensor:
                storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
                return tensor

            tokens = torch.zeros(batch_size, length, dtype=torch.long)
            with saved_tensors_hooks(save, lambda tensor: tensor), torch.autocast("cpu", dtype=torch.bfloat16):
                # With a cache, upstream does not look for packed documents in the positions, which have no values.
                loss = model(tokens, labels=tokens, use_cache=True).loss
            kept.append(sum(storage.nbytes() for key, storage in storages.items() if key not in parameters))
            del loss
    per_sequence = kept[1] - kept[0]
    return kept[0] - per_sequence, per_sequence // length


def report(infos: list[ModelInfo]) -> str:
    """Formats the costs of several recipes as three tables."""
    parameters = [("recipe", "all", "in HC", "in one", "to residual", "")]
    flops = [("recipe", "products", "scores", "context", "small", "HC adds", "", "Table 8", "HC adds")]
    memory = [("recipe", "weights", "gradients", "AdamW", "bf16 copies", "MiB a token")]
    for info in infos:
        residual_parameters = info.parameters - info.parameters_over_residual
        parameters.append(
            (
                info.recipe,
                f"{info.parameters:,}",
                f"{info.parameters_in_hyper_connections:,}",
                f"{info.parameters_in_one_connection:,}",
                f"{info.parameters_over_residual:+,}",
                f"{info.parameters_over_residual / residual_parameters:+.5%}",
            )
        )
        paper = [f"{number:.4f}" for number in TABLE_8[info.recipe]] if info.recipe in TABLE_8 else ["", ""]
        residual_flops = info.flops_products + info.flops_small - info.flops_over_residual
        flops.append(
            (
                info.recipe,
                f"{info.flops_products / 1e9:.4f}",
                f"{info.flops_scores / 1e9:.4f}",
                str(info.context_length),
                f"{info.flops_small / 1e9:.4f}",
                f"{info.flops_over_residual / 1e9:.4f}",
                f"{info.flops_over_residual / residual_flops:+.3%}",
                *paper,
            )
        )
        parts = info.memory_weights, info.memory_gradients, info.memory_adamw, info.memory_bf16_copies
        memory.append(
            (
                info.recipe,
                *(f"{size / 2**30:.2f}" for size in parts),
                f"{info.memory_activations_per_token / 2**20:.3f}",
            )
        )
    return "\n\n".join(
        f"{title}\n\n{align(rows)}" for title, rows in ((PARAMETERS, parameters), (FLOPS, flops), (MEMORY, memory))
    )


def align(rows: list[tuple[str, ...]]) -> str:
    """Formats rows as columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a recipe, by name or path")
    parser.add_argument(
        "--connection", nargs="+", default=[None], choices=list(CONNECTIONS), help="instead of its own"
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    arguments = parser.parse_args()
    try:
        recipes = [find_recipe("models", name) for name in arguments.recipes]
        infos = [model_info(recipe, connection) for recipe in recipes for connection in arguments.connection]
    except ValueError as error:
        sys.exit(str(error))
    print(json.dumps([asdict(info) for info in infos], indent=2) if arguments.json else report(infos))


if __name__ == "__main__":
    main()
