# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Statistics of a model over a text of any length, or images: one window of tokens is held at a time."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from ..functional_hc import widen
from .connections import (
    GAIN_COLUMNS,
    MEMORY_COLUMN,
    cancellation,
    effective_rank,
    gain_values,
    second_singular_values,
    shares,
    unfold,
)
from .recording import Recording, block_kinds, block_names, connections, is_hyper_connected, record, require_streams


@dataclass
class Measurement:
    """What was measured over a text; the layers of a matrix are numbered as in `connections.unfold`.

    Attributes:
        tokens: how many were read.
        matrix: C0 of every token, averaged over the tokens, `[K+2, K+2]`: what figures and readings show.
        stream_matrices: C1..CN likewise, `[N, K+2, K+2]`.
        matrix_of_means: C0 of the averaged coefficients, which is another matrix where they vary together.
        stream_matrices_of_means: C1..CN likewise.
        error: how far a token's C0 times the outputs of the layers is from what its blocks read, at most, as a part of
            the largest value: only rounding in the model's dtype.
        layers: a row for each layer 0..K+1, with its `name` and, where they have meaning,
            `similarity`: cosine between what this block reads and what the block before reads (Fig. 3);
            `output_rms`: root mean square of what the layer writes;
            `contribution`: part of the final hidden state that is this layer's output, through its weight in the last
            row of C0: their dot product over the squared length of the whole, which sums to 1 over the layers;
            and for hyper-connected models
            `stream_cosine`: between two of the streams before this block;
            `effective_rank`: of the streams before this block: 1 where they are one direction, N at most;
            `cancellation`, `forward`, `backward`, `composite_forward`, `composite_backward`, `composite_second`: see
            `connections`, `gain_values` and `second_singular_values`;
            and for all but static ones
            `moved`: root mean square distance of the coefficients from their static part;
            `varied`: their standard deviation over the tokens, root mean square over the coefficients;
            `diversity`: mean cosine distance between two tokens' streams;
            `diversity_correlation`: Pearson's, over pairs of tokens in a window, between the cosine distance of their
            streams and the distance of their coefficients.
            `similarity`, `stream_cosine` and `effective_rank` are medians over tokens, beside the 5th and the 95th
            percentile in columns that end in `_low` and `_high`, exact to a ten-thousandth of their range.
    """

    tokens: int
    matrix: Tensor
    stream_matrices: Tensor
    matrix_of_means: Tensor
    stream_matrices_of_means: Tensor
    error: float
    layers: pandas.DataFrame

    @property
    def shares(self) -> Tensor:
        """Which part of what each layer reads comes from which: `connections.shares` of the averaged matrix."""
        return shares(self.matrix, torch.from_numpy(self.layers.output_rms.to_numpy(copy=True)[:-1]))


def measure(model: PreTrainedModel, windows: Iterable[Tensor]) -> Measurement:
    """Measures a model on a text.

    Args:
        model: hyper-connected, or the residual parent of a hyper-connected family.
        windows: token ids of pieces of the text, each `[B, S]` without padding, S at least 2; or pixels of images,
            each `[B, C, H, W]`. A window is held whole in memory: see `record`.

    Raises:
        ValueError: another model, no windows, or a window of one token.
    """
    hyper_connected = is_hyper_connected(model)
    static = static_coefficients(model) if hyper_connected and model.config.connection != "static" else None
    sums: dict[str, Tensor] = {}
    histograms: dict[str, _Histogram] = {}
    error = 0.0
    for window in windows:
        if model.main_input_name == "input_ids" and (window.dim() != 2 or window.shape[1] < 2):
            raise ValueError(f"A window has shape {list(window.shape)}: give token ids [B, S] with S of 2 or more.")
        recording = record(model, window)
        added = _matrix_sums(recording)
        if static is not None:
            added |= _movement_sums(recording, static)
        for name, value in added.items():
            sums[name] = sums.get(name, 0) + value.double()
        for name, (values, low, high) in _distributions(recording).items():
            histograms.setdefault(name, _Histogram(len(values), low, high)).add(values)
        error = max(error, unfolding_error(recording))
    if not sums:
        raise ValueError("windows is empty: give at least one window of token ids, or of pixels.")
    tokens = int(sums.pop("tokens"))
    means = {name: value / tokens for name, value in sums.items()}
    of_means = unfold(means["alpha"], means["beta"], means["closing"])
    if not hyper_connected:
        del means["gains"]
    layers = _layers(means, histograms, block_kinds(model))
    return Measurement(tokens, means["matrix"], means["stream_matrices"], *of_means, error, layers)


def unfolding_error(recording: Recording) -> float:
    """Returns how far C0 times the outputs of the layers is from what the blocks read and from the final hidden state.

    Returns:
        The largest deviation as a part of the largest value; rounding in the model's dtype if the matrix is right.
    """
    matrix, _ = recording.unfold()
    read = torch.cat([recording.block_inputs, recording.final[None]]).double()
    found = torch.einsum("bskj,jbsd->kbsd", matrix[..., 1:, :-1], recording.outputs.double())
    return ((found - read).abs().max() / read.abs().max()).item()


def static_coefficients(model: PreTrainedModel) -> Tensor:
    """Returns the static part of all coefficients of a hyper-connected model, `[K, N, 2+N]`: read, carry, write."""
    parts = [connection.static_coefficients() for connection in connections(model)]
    return torch.stack([torch.cat([alpha, beta.unsqueeze(-1)], dim=-1).detach().cpu() for alpha, beta in parts])


def movement(model: PreTrainedModel, recording: Recording) -> Tensor:
    """Returns how far the dynamic part moves the coefficients of each token.

    Returns:
        `[K, B, S]`, the root mean square distance of a block's N(2+N) coefficients from their static part.

    Raises:
        ValueError: the model is residual.
    """
    require_streams(model, "The movement of coefficients")
    distance = _coefficients(recording) - static_coefficients(model)[:, None, None]
    return distance.square().mean((-2, -1)).sqrt()


def _coefficients(recording: Recording) -> Tensor:
    return torch.cat([recording.alpha, recording.beta.unsqueeze(-1)], dim=-1)


def _matrix_sums(recording: Recording) -> dict[str, Tensor]:
    """Returns sums over the tokens: coefficients, unfolded matrices, and what each layer wrote and contributed."""
    matrix, stream_matrices = recording.unfold()
    alpha, beta = recording.alpha.flatten(1, 2).double(), recording.beta.flatten(1, 2).double()
    outputs, final = widen(recording.outputs), widen(recording.final)
    part = matrix[..., -1, :-1].movedim(-1, 0) * (outputs * final).sum(-1) / final.square().sum(-1)
    tokens = alpha.shape[1]
    second = {"second": tokens * second_singular_values(alpha.movedim(1, 0))} if beta.shape[-1] > 1 else {}
    return second | {
        "tokens": torch.tensor(tokens),
        "alpha": alpha.sum(1),
        "beta": beta.sum(1),
        "closing": recording.closing.double().sum((0, 1)),
        "matrix": matrix.sum((0, 1)),
        "stream_matrices": stream_matrices.sum((0, 1)),
        "gains": tokens * gain_values(alpha.movedim(1, 0)),
        "contribution": part.sum((1, 2)),
        "output_square": outputs.square().mean(-1).sum((1, 2)),
    }


def _movement_sums(recording: Recording, static: Tensor) -> dict[str, Tensor]:
    """Returns sums over tokens and over pairs of tokens of a window: coefficients, directions of streams."""
    coefficients = _coefficients(recording).flatten(-2)  # [K, B, S, N(2+N)]
    directions = normalize(widen(recording.streams), dim=-1)
    t, u = torch.triu_indices(coefficients.shape[2], coefficients.shape[2], 1)
    moments = []
    for block, direction in zip(coefficients.double(), directions, strict=True):  # one at a time: S x S is large
        cosine = (direction.movedim(-2, 1) @ direction.movedim(-2, 1).mT).mean(1)
        distance = torch.cdist(block, block, compute_mode="donot_use_mm_for_euclid_dist")
        x, y = 1 - cosine[:, t, u].double(), distance[:, t, u]
        moments.append(torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum((1, 2)))
    return {
        "moved": (coefficients - static.flatten(1)[:, None, None]).square().mean(-1).sum((1, 2)),
        "coefficients": coefficients.sum((1, 2)),
        "coefficient_squares": coefficients.double().square().sum((1, 2)),
        "directions": directions.sum((1, 2)),
        "pair_moments": torch.stack(moments, dim=1),
    }


def _distributions(recording: Recording) -> dict[str, tuple[Tensor, float, float]]:
    """Returns per-token values whose quantiles are reported, `[rows, ...]`, and their range."""
    inputs, streams = widen(recording.block_inputs), widen(recording.streams)
    found: dict[str, tuple[Tensor, float, float]] = {
        "similarity": (torch.cosine_similarity(inputs[1:], inputs[:-1], dim=-1), -1, 1)
    }
    if (num_streams := streams.shape[-2]) > 1:
        directions = normalize(streams, dim=-1)
        i, j = torch.triu_indices(num_streams, num_streams, 1)
        found["stream_cosine"] = (directions @ directions.mT)[..., i, j], -1, 1
        found["effective_rank"] = effective_rank(streams), 1, num_streams
    return found


class _Histogram:
    """Counts of values in narrow bins, from which quantiles follow to a ten-thousandth of the range."""

    BINS = 10_000

    def __init__(self, rows: int, low: float, high: float) -> None:
        self.low, self.width = low, (high - low) / self.BINS
        self.counts = torch.zeros(rows, self.BINS, dtype=torch.long)

    def add(self, values: Tensor) -> None:
        bins = ((values.flatten(1) - self.low) / self.width).long().clamp(0, self.BINS - 1)
        self.counts.scatter_add_(1, bins, torch.ones_like(bins))

    def quantile(self, level: float) -> Tensor:
        share = self.counts.cumsum(1) / self.counts.sum(1, keepdim=True)
        return self.low + ((share < level).sum(1) + 0.5) * self.width


def _layers(means: dict[str, Tensor], histograms: dict[str, _Histogram], kinds: tuple[str, ...]) -> pandas.DataFrame:
    """Returns the frame of `Measurement.layers` from means over tokens and distributions."""
    num_blocks = len(means["alpha"])
    frame = pandas.DataFrame({"name": block_names(num_blocks, kinds)}).rename_axis("layer")

    def put(name: str, values: Tensor, first: int) -> None:
        frame.loc[first : first + len(values) - 1, name] = values.double().numpy()

    for name, histogram in histograms.items():
        first = num_blocks + 1 - len(histogram.counts)
        for ending, level in (("", 0.5), ("_low", 0.05), ("_high", 0.95)):
            put(name + ending, histogram.quantile(level), first)
    put("output_rms", means["output_square"].sqrt(), 0)
    put("contribution", means["contribution"], 0)
    if "gains" in means:
        put("cancellation", cancellation(means["stream_matrices"]), 0)
        for name, values in zip(GAIN_COLUMNS, means["gains"].T, strict=True):
            put(name, values, 1)
    if "second" in means:
        put(MEMORY_COLUMN, means["second"], 1)
    if "moved" in means:
        variance = means["coefficient_squares"] - means["coefficients"].square()
        put("moved", means["moved"].sqrt(), 1)
        put("varied", variance.clamp_min(0).mean(-1).sqrt(), 1)
        put("diversity", 1 - means["directions"].square().sum(-1).mean(-1), 1)
        n, x, y, xx, yy, xy = means["pair_moments"]
        x, y = x / n, y / n
        put("diversity_correlation", (xy / n - x * y) / ((xx / n - x * x) * (yy / n - y * y)).sqrt(), 1)
    return frame
