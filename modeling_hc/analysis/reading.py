# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A written reading of the numbers, finding by finding in the order of the paper's Section 4.5."""

from statistics import median

import pandas

from .connections import parallel_blocks, weight_by_distance
from .measurement import Measurement


def describe(
    measurement: Measurement, parent: Measurement | None = None, ablation: pandas.DataFrame | None = None
) -> dict[str, str]:
    """Says in words what was measured. It reports and compares; it does not judge whether a value is good.

    Args:
        measurement: of the model.
        parent: of its residual parent, on the same text.
        ablation: what `ablate_and_rescue` returned for the model.

    Returns:
        A paragraph for each topic, by its heading.
    """
    layers, columns = measurement.layers, set(measurement.layers)
    paragraphs = {
        "Where blocks read from": _reach("Of the model", measurement)
        + (_reach("Of its residual parent", parent) if parent else ""),
        "Parallel blocks": _parallel(measurement),
        "Attention and MLP": _kinds(measurement),
        "Embedding": _embedding("In the model", measurement)
        + (_embedding("In its residual parent", parent) if parent else ""),
        "Similarity of inputs": _similarity("of the model", measurement)
        + (_similarity("of its residual parent", parent) if parent else ""),
    }
    if "effective_rank" in columns:
        paragraphs["Streams"] = (
            f"Before a block the streams have an effective rank of {_range(layers.effective_rank)} (median tokens; "
            f"{len(measurement.stream_matrices)} at most), and two of them a cosine of "
            f"{_range(layers.stream_cosine)}. At the end, {_percent(_weighted_cancellation(measurement))} of what "
            "they hold has opposite signs and cancels in their reduction."
        )
    if "forward" in columns:
        largest = layers[["composite_forward", "composite_backward"]].idxmax()
        paragraphs["Gain"] = (
            f"Carried on to the output, streams can grow by at most {layers.composite_forward.max():.3g} (from block "
            f"{largest.composite_forward}), and gradients on the way back by {layers.composite_backward.max():.3g}; a "
            f"single block allows {_range(layers.forward)}."
        )
    if "moved" in columns:
        most = int(layers.moved.idxmax())
        paragraphs["The dynamic part"] = (
            f"It moves the coefficients by {_range(layers.moved)} from their static part (root mean square), most in "
            f"{layers.name[most]}; between tokens they vary by {_range(layers.varied)}."
        )
        if layers.diversity_correlation.notna().any():  # not in an untrained model
            paragraphs["The dynamic part"] += (
                " Over pairs of tokens, the distance of their coefficients has a correlation of "
                f"{_range(layers.diversity_correlation)} with the distance of their streams."
            )
    if ablation is not None:
        paragraphs["Ablate and rescue"] = _ablation(ablation)
    return paragraphs


def _reach(whose: str, measurement: Measurement) -> str:
    parts = measurement.shares.abs()
    layers = len(parts)
    late = parts[layers // 2 : -1]  # the second half of the blocks
    near = sum(row[max(k - 2, 3) : k].sum().item() for k, row in enumerate(late, layers // 2)) / len(late)
    bottom = late[:, :3].sum(1).mean().item()
    return (
        f"{whose}, blocks {layers // 2} to {layers - 2} take {_percent(near)} of what they read from the two blocks "
        f"just before, {_percent(bottom)} from the bottom (embedding and first layer, which are counted here only), "
        "and the rest from between. "
    )


def _parallel(measurement: Measurement) -> str:
    groups = parallel_blocks(measurement.matrix)
    found = "; ".join(", ".join(measurement.layers.name[k] for k in group) for group in groups)
    return f"Blocks that hardly read each other: {found}." if groups else "No neighbouring blocks ignore each other."


def _kinds(measurement: Measurement) -> str:
    layers, decay = measurement.layers, weight_by_distance(measurement.shares).dropna()
    written = {kind: layers.output_rms[layers.name.str.endswith(kind)].median() for kind in ("attention", "MLP")}
    text = (
        f"Attention writes {written['attention']:.3g} and MLP {written['MLP']:.3g} (root mean square, median blocks)."
    )
    if decay.empty:  # one layer: its MLP has no block to be read by
        return text
    start = min(5, len(decay))
    far = decay.loc[start:].mean()
    return (
        f"{text} Of what a block reads, a block {start} or more before it has {_percent(far.attention)} if it is "
        f"attention, and {_percent(far.mlp)} if it is an MLP."
    )


def _embedding(whose: str, measurement: Measurement) -> str:
    *blocks, output = measurement.shares[1:, 0].abs().tolist()
    shares = f"{_percent(median(blocks))} of what the median block reads and {_percent(output)} of the output"
    return f"{whose}, it is {shares}. "


def _similarity(whose: str, measurement: Measurement) -> str:
    layers = measurement.layers
    return (
        f"The inputs of successive blocks {whose} have a median cosine of {layers.similarity.median():.3f} (lowest "
        f"{layers.similarity.min():.3f}, at {layers.name[int(layers.similarity.idxmin())]}). "
    )


def _weighted_cancellation(measurement: Measurement) -> float:
    layers = measurement.layers
    amounts = measurement.stream_matrices[:, -1, :-1].abs().sum(0).numpy() * layers.output_rms[:-1]
    return float((layers.cancellation[:-1] * amounts).sum() / amounts.sum())


def _ablation(table: pandas.DataFrame) -> str:
    rise = table.ablated - table.untouched
    block, stream = rise.idxmax()
    text = (
        f"Taking a stream away before a block changes the loss by {rise.median():+.2g} nats in the median case and "
        f"by {rise.max():+.3g} at worst: stream {stream} before block {block}."
    )
    both = table.dropna()
    whole = (both.ablated - both.untouched).sum()
    if whole <= 0:
        return text
    undone = (both.ablated - both.rescued).sum() / whole
    return f"{text} Given back some blocks later, {_percent(undone)} of the whole rise is undone."


def _range(values: pandas.Series) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if abs(share) >= 0.1 else f"{share:.1%}"
