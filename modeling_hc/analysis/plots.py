# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Figures of what `measure` and `ablate_and_rescue` return, for a page or a paper; each function returns a figure.

Colours are those of Okabe and Ito, and a diverging map from orange over white to blue: both can be told apart with any
kind of colour vision. Attention and MLP differ in colour and in marker.
"""

from collections.abc import Mapping

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .measurement import Measurement

MODELS = ("#0072b2", "#d55e00")  # the model, its residual parent
KINDS = {
    "attention": ("#009e73", "o"),
    "MLP": ("#cc79a7", "s"),
    "embedding": ("#56b4e9", "D"),
    "parallel": ("#e69f00", "^"),
}
DIVERGING = "PuOr"


def connection_matrices(
    matrices: Mapping[str, Tensor],
    label: str = "weight",
    limit: float | None = None,
    kinds: tuple[str, ...] = ("attention", "MLP"),
) -> Figure:
    """Draws connection matrices side by side: rows read, columns were written.

    Args:
        matrices: C0, a stream's Ci, or shares of one, `[K+2, K+2]`, by title.
        label: what the values are.
        limit: values beyond it get the colour of the limit. Unless told it is 1, as in the paper, or where many are
            larger, so large that a tenth of them lie beyond it.
        kinds: what the blocks of a layer are, `block_kinds`.

    Source: Figures 7 and 13.
    """
    if limit is None:
        sizes = [matrix.abs()[np.tril_indices(len(matrix), -1)] for matrix in matrices.values()]
        limit = max(1.0, float(np.quantile(np.concatenate(sizes), 0.9)))
    figure = Figure(figsize=(0.6 + 3.1 * len(matrices), 3.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        image = _draw_matrix(ax, matrix, limit, kinds)
        ax.set_title(title, fontsize=9)
    axes[0].set_ylabel("layer that reads")
    figure.colorbar(image, ax=axes, shrink=0.75, extend="both", label=label)
    figure.legend(handles=_kind_handles(*kinds), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_matrix(ax: Axes, matrix: Tensor, limit: float, kinds: tuple[str, ...]) -> AxesImage:
    layers = len(matrix)
    unread = np.triu(np.ones((layers, layers), dtype=bool))
    values = np.ma.masked_array(matrix.numpy(), unread)[1:, :-1]
    image = ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, extent=(-0.5, layers - 1.5, layers - 0.5, 0.5))
    for k in range(1, layers - 1):
        color, marker = KINDS[kinds[(k - 1) % len(kinds)]]
        for x, y in ((-1.1, k), (k, layers + 0.1)):
            ax.plot(x, y, marker=marker, color=color, markersize=min(4, 60 / layers), clip_on=False)
    step = -(-(layers - 1) // 9)
    ticks = np.arange(0, layers, step)
    ax.set(xlabel="layer that was written", xticks=ticks[ticks < layers - 1], yticks=ticks[ticks > 0])
    ax.set(xlim=(-0.5, layers - 1.5), ylim=(layers - 0.5, 0.5))
    ax.tick_params(length=0, pad=9, labelsize=7)
    ax.spines[:].set_visible(False)
    return image


def _kind_handles(*kinds: str) -> list[Line2D]:
    return [Line2D([], [], linestyle="", color=KINDS[kind][0], marker=KINDS[kind][1], label=kind) for kind in kinds]


def similarity(measurements: Mapping[str, Measurement]) -> Figure:
    """Draws the cosine between the inputs of successive blocks: median, and band from the 5th to the 95th percentile.

    Source: Figure 3.
    """
    figure = Figure(figsize=(5, 3), layout="constrained")
    ax = figure.subplots()
    for (name, measurement), color in zip(measurements.items(), MODELS, strict=False):
        _band(ax, measurement.layers, "similarity", color, name)
    ax.set(xlabel="block", ylabel="cosine to the input before", ylim=(None, 1.02))
    return _finished(figure)


def streams(measurement: Measurement) -> Figure:
    """Draws how different the streams are, and how much carrying them on can amplify, by depth."""
    layers = measurement.layers
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    rank, cosine, gain = figure.subplots(1, 3)
    _band(rank, layers, "effective_rank", MODELS[0])
    rank.set(
        xlabel="block", ylabel="effective rank of the streams", ylim=(0.9, len(measurement.stream_matrices) + 0.1)
    )
    _band(cosine, layers, "stream_cosine", MODELS[0])
    cosine.set(xlabel="block", ylabel="cosine between streams", ylim=(-1.05, 1.05))
    for name, color, dash in (("forward", MODELS[0], "-"), ("backward", MODELS[1], "--")):
        gain.plot(layers.index, layers[f"composite_{name}"], dash, color=color, label=f"{name}, to the output")
        gain.plot(layers.index, layers[name], dash, color=color, alpha=0.4, label=f"{name}, one block")
    gain.set(xlabel="block", ylabel="Amax gain of the carry", yscale="log")
    return _finished(figure)


def contributions(measurements: Mapping[str, Measurement]) -> Figure:
    """Draws how much each layer writes, and which part of the final hidden state that is."""
    figure = Figure(figsize=(9, 1 + 2 * len(measurements)), layout="constrained")
    rows = figure.subplots(len(measurements), 2, squeeze=False)
    for (name, measurement), (written, part) in zip(measurements.items(), rows, strict=True):
        for ax, column in ((written, "output_rms"), (part, "contribution")):
            for kind, (color, _) in KINDS.items():
                chosen = measurement.layers[measurement.layers.name.str.endswith(kind)]
                if chosen.empty:
                    continue
                ax.bar(chosen.index, chosen[column], color=color, label=kind)
            ax.set(xlabel="layer")
            ax.axhline(0, color="#666666", linewidth=0.6)
        written.set(ylabel=f"{name}\nroot mean square written")
        part.set(ylabel="part of the final hidden state")
    return _finished(figure)


def movement(measurement: Measurement) -> Figure:
    """Draws how far the dynamic part moves the coefficients, and whether different tokens get different ones."""
    layers = measurement.layers
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    distance, correlation = figure.subplots(1, 2)
    distance.plot(layers.index, layers.moved, "o-", color=MODELS[0], markersize=3, label="from the static part")
    distance.plot(layers.index, layers.varied, "s--", color=MODELS[1], markersize=3, label="between tokens")
    distance.set(xlabel="block", ylabel="movement of the coefficients", ylim=(0, None))
    correlation.plot(
        layers.index, layers.diversity_correlation, "o-", color=MODELS[0], markersize=3, label="correlation"
    )
    correlation.plot(
        layers.index, layers.diversity, "s--", color="#777777", markersize=3, label="mean distance of streams"
    )
    correlation.set(
        xlabel="block", ylabel="over pairs of tokens", ylim=(min(0, layers.diversity_correlation.min()), 1)
    )
    return _finished(figure)


def ablation(table: pandas.DataFrame) -> Figure:
    """Draws what the loss becomes without a stream, and with it given back: differences in nats per token."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots(1, 2)
    worse = {name: (table[name] - table.untouched).unstack("stream") for name in ("ablated", "rescued")}
    limit = max(frame.abs().max().max() for frame in worse.values())
    for ax, (name, frame) in zip(axes, worse.items(), strict=True):
        image = ax.imshow(frame.T, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        ax.set(title=name, xlabel="block before which the stream is taken away", ylabel="stream")
        ax.set_xticks(range(len(frame)), frame.index)
        ax.set_yticks(range(frame.shape[1]), frame.columns)
        ax.tick_params(labelsize=7)
    figure.colorbar(image, ax=axes, label="loss, over untouched")
    return figure


def _band(ax: Axes, layers: pandas.DataFrame, column: str, color: str, label: str = "") -> None:
    rows = layers.dropna(subset=[column])
    ax.fill_between(rows.index, rows[f"{column}_low"], rows[f"{column}_high"], color=color, alpha=0.2, linewidth=0)
    ax.plot(rows.index, rows[column], "o-", color=color, markersize=3, label=label)


def _finished(figure: Figure) -> Figure:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y", alpha=0.3)
        if any(label for label in ax.get_legend_handles_labels()[1]):
            ax.legend(fontsize=7, frameon=False)
    return figure
