# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Monitors hyper-connections in training for the known signs of failure.

    trainer.add_callback(ConnectionHealth(trainer, input_ids))  # or pixel_values

Where the carry amplifies, losses surge: in a 27B model with hyper-connections the largest composite gain came to about
3000, with the constrained ones of mHC it stayed below 1.6 (arXiv 2512.24880, its figures of the gains). A cosine near
1 between what successive blocks read says that the blocks add little (arXiv 2409.19606, Figure 3).
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .analysis.connections import effective_rank, gain_values, second_singular_values
from .analysis.recording import connections, hooked, is_hyper_connected, model_inputs, watched_blocks
from .hyper_connections import HyperConnection

logger = logging.getLogger(__name__)

GAIN_LIMIT = 300.0
"""A tenth of the composite gain that was seen where losses surged; a residual network's is 1."""


def health(model: PreTrainedModel, inputs: Tensor) -> dict[str, float]:
    """Runs a model over a little text, or a few images, and measures its connections with hooks.

    It runs eagerly, in evaluation mode: no random number is drawn. Where the model is sharded, every process must take
    part.

    Args:
        model: hyper-connected, or the residual parent of a hyper-connected family; with any head, with adapters.
        inputs: token ids `[B, S]`, without padding, or pixels `[B, C, H, W]`.

    Returns:
        `input_cosine`: the median, over tokens and blocks, of the cosine between what a block reads and what the one
        before read; and for hyper-connected models
        `forward_gain`, `backward_gain`: the largest Amax gain of a composite carry, from some block to the output, as
        a mean over the tokens: see `analysis.gains`;
        `second_singular_value`: of the composite carry from the first block to the output, likewise, for two streams
        or more: near 0, the output no longer tells the streams of the first blocks apart;
        `effective_rank`: of the streams before the last block, the median over tokens: 1 to N;
        `alpha_spread`, `beta_spread`: the largest less the smallest coefficient, over tokens and blocks;
        `dynamic_size`: root mean square of the dynamic part of all coefficients over that of the static part, 0 in
        static connections.
        Nothing for a model of no family of this package.
    """
    model, hyper_connected = _base(model)
    if hyper_connected is None:
        return {}
    cosines: list[Tensor] = []
    last: list[Tensor] = []
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    static: list[Tensor] = []
    streams_read: list[Tensor] = []

    def keep_input(block_input: Tensor) -> None:
        if last:
            cosines.append(torch.cosine_similarity(last.pop().float(), block_input.float(), dim=-1))
        last.append(block_input.clone())

    def keep_static(connection: HyperConnection, args: Any) -> None:
        # Now: where parameters are sharded, they are here now.
        alpha, beta = connection.static_coefficients()
        static.append(torch.cat([alpha, beta.unsqueeze(-1)], dim=-1).detach())

    def keep_connection(connection: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        streams, block_input, alpha, beta = output
        keep_input(block_input)
        streams_read[:] = [streams]
        alphas.append(alpha.reshape(-1, *alpha.shape[-2:]))
        betas.append(beta.reshape(-1, beta.shape[-1]))

    if hyper_connected:
        with hooked(
            [(c, keep_connection) for c in connections(model)], [(c, keep_static) for c in connections(model)]
        ):
            _run(model, inputs)
    else:
        with watched_blocks(model, lambda block_input, output: keep_input(block_input)):
            _run(model, inputs)

    values = {"input_cosine": torch.stack(cosines).median().item()}
    if alphas:
        alpha, beta = torch.stack(alphas, dim=1).cpu(), torch.stack(betas, dim=1).cpu()  # [T, K, N, ...]
        fixed = torch.stack(static).cpu()
        forward_gain, backward_gain = gain_values(alpha)[:, 2:].amax(0).tolist()
        moved = torch.cat([alpha, beta.unsqueeze(-1)], dim=-1) - fixed
        values |= {
            "forward_gain": forward_gain,
            "backward_gain": backward_gain,
            "effective_rank": _or_nan(effective_rank, streams_read[0]).median().item(),
            "alpha_spread": (alpha.max() - alpha.min()).item(),
            "beta_spread": (beta.max() - beta.min()).item(),
            "dynamic_size": (moved.square().mean() / fixed.square().mean()).sqrt().item(),
        }
        if alpha.shape[-2] > 1:
            values["second_singular_value"] = _or_nan(second_singular_values, alpha)[0].item()
    return values


def stream_magnitudes(model: PreTrainedModel, inputs: Tensor) -> list[float]:
    """Runs a model as `health` does. Returns the largest magnitude in the streams before each block, or no values."""
    model, hyper_connected = _base(model)
    found: list[float] = []

    def keep(streams: Tensor) -> None:
        found.append(streams.abs().max().item())

    if hyper_connected:
        with hooked([(c, lambda module, args, output: keep(output[0])) for c in connections(model)]):
            _run(model, inputs)
    elif hyper_connected is not None:
        with watched_blocks(model, lambda block_input, output: keep(block_input)):
            _run(model, inputs)
    return found


def _or_nan(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Returns a function of matrices, or a NaN where it fails: for a NaN among them, and for numbers far apart."""
    try:
        return function(values)
    except torch.linalg.LinAlgError:
        return torch.full((1,), math.nan)


def _base(model: PreTrainedModel) -> tuple[PreTrainedModel, bool | None]:
    """Returns a model without peft's wrapper, and whether it is hyper-connected, or None for one of no family."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        return model, is_hyper_connected(model)
    except ValueError:
        return model, None


@torch.no_grad()
def _run(model: PreTrainedModel, inputs: Tensor) -> None:
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            model(**model_inputs(model, inputs))
    finally:
        model.train(training)


class ConnectionHealth(TrainerCallback):
    """Logs `health` of the model in training whenever the Trainer logs or evaluates, and warns when it runs away.

    The values have the prefix `health_` and reach every tracker. Training is the same with and without it, bit for
    bit. Every process runs the inputs, so that it works with every engine; the first one warns, once for each value.

    Args:
        trainer: the one that this is added to, for its log.
        inputs: token ids of a text, `[B, S]`, without padding, or pixels of images, `[B, C, H, W]`; the same at every
            time, so that only the model makes the values change. A few hundred tokens, or a few images, are enough.

    Raises:
        ValueError: `inputs` are no such tensor.
    """

    def __init__(self, trainer: Trainer, inputs: Tensor) -> None:
        inputs = torch.as_tensor(inputs)
        if inputs.dim() != (4 if inputs.is_floating_point() else 2) or inputs.numel() == 0:
            raise ValueError(
                f"inputs are {inputs.dtype} of shape {list(inputs.shape)}; give token ids [batch, sequence], or "
                "pixels [batch, channels, height, width]."
            )
        self.trainer = trainer
        self.inputs = inputs
        self.warned: set[str] = set()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        should_log = control.should_log
        if not should_log and not control.should_evaluate:
            return
        values = health(model, self.inputs)
        if values:
            # Not the trainer's own `log`: an override, as TRL's, adds the averages of its next entry to this one.
            Trainer.log(self.trainer, {f"health_{name}": value for name, value in values.items()})
            control.should_log = should_log  # which a log resets
        if state.is_world_process_zero:
            self._warn(state.global_step, values)

    def _warn(self, step: int, values: dict[str, float]) -> None:
        new = {name: value for name, value in values.items() if name not in self.warned}
        lost = [name for name, value in new.items() if not math.isfinite(value)]
        if lost:
            logger.warning(f"Step {step}: {', '.join(lost)} of the connections are not finite.")
        grown = {
            name: value for name, value in new.items() if name.endswith("_gain") and GAIN_LIMIT < value < math.inf
        }
        for name, value in grown.items():
            logger.warning(
                f"Step {step}: {name} of the hyper-connections is {value:.0f}, over {GAIN_LIMIT:.0f}: their carry "
                "amplifies, as it did to about 3000 where losses surged in arXiv 2512.24880. Lower the learning "
                "rate or clip harder (max_grad_norm), from a checkpoint before this step."
            )
        self.warned |= {*lost, *grown}
