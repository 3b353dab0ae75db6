# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The numbers of modeling_hc.analysis, against the models' modules, the paper's patterns and plain definitions."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas
import pytest
import test_families
import test_modeling_hc_gpt_neox
import test_modeling_hc_llama
import test_modeling_hc_olmo
import test_modeling_hc_olmo2
import test_modeling_hc_olmoe
import test_modeling_hc_vit
import torch
from contract import scramble
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, GemmaConfig, GPT2Config, PreTrainedModel

from modeling_hc import hyper_connect
from modeling_hc.analysis import (
    ablate_and_rescue,
    cancellation,
    describe,
    gains,
    measure,
    movement,
    parallel_blocks,
    plots,
    record,
    second_singular_values,
    shares,
    static_coefficients,
    unfold,
    unfolding_error,
    weight_by_distance,
)

FAMILIES = {
    "llama": test_modeling_hc_llama.TestHCLlama(),
    "olmo": test_modeling_hc_olmo.TestHCOlmo(),
    "olmoe": test_modeling_hc_olmoe.TestHCOlmoe(),
    "olmo2": test_modeling_hc_olmo2.TestHCOlmo2(),
    "gemma3": test_families.TestHCGemma3Text(),
    "granite": test_families.TestHCGranite(),
    "gpt_neox": test_modeling_hc_gpt_neox.TestHCGPTNeoX(),
}
VARIANTS = {
    "DHC": {},
    "DHC without tanh": {"use_tanh": False},
    "SHC": {"connection": "static"},
    "mean": {"stream_reduction": "mean"},
    "x1": {"num_streams": 1},
}


def windows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 99, (2, 12), generator=generator), torch.randint(2, 99, (1, 7), generator=generator)]


def exact(family: str = "llama", **kwargs) -> PreTrainedModel:
    """A model in fp64 whose streams and tokens all differ."""
    return in_fp64(FAMILIES[family].trained(**kwargs))


def residual(family: str = "llama") -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(FAMILIES[family].parent_config()).eval()
    scramble(model, 0.2)
    return in_fp64(model)


def in_fp64(model: PreTrainedModel) -> PreTrainedModel:
    if model.config.model_type.endswith("olmoe"):
        model.set_experts_implementation("eager")  # the fast one has no fp64
    return model.double()


# ---- recording and the unfolded matrix ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_matrix_times_what_layers_wrote_is_what_every_block_reads_and_the_output(
    family: str, variant: str
) -> None:
    recording = record(exact(family, **VARIANTS[variant]), windows()[0])
    matrix, stream_matrices = recording.unfold()

    read = torch.einsum("bskj,jbsd->kbsd", matrix[..., 1:, :-1], recording.outputs)
    carried = torch.einsum("kbsft,kbsfd->kbstd", recording.alpha[..., 1:], recording.streams)
    held = torch.einsum("bsnkj,jbsd->kbsnd", stream_matrices[..., 1:-1, :-1], recording.outputs)

    assert (
        recording.outputs[1:].abs().amin((1, 2, 3)).min() >= 0 and recording.outputs.abs().amax((1, 2, 3)).min() > 0.01
    )
    assert (read[:-1] - recording.block_inputs).abs().max() < 1e-10
    assert (read[-1] - recording.final).abs().max() < 1e-10
    assert (held - carried).abs().max() < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_recorded_of_a_residual_parent_is_its_hidden_states_and_adds_up_to_them(family: str) -> None:
    model, ids = residual(family), windows()[0]
    states = model(ids, output_hidden_states=True).hidden_states

    recording = record(model, ids)

    per_layer = len(recording.streams) // model.config.num_hidden_layers
    for i, state in enumerate(states[:-1]):
        assert (recording.block_inputs[i * per_layer] - state).abs().max() < 1e-10
    assert unfolding_error(recording) < 1e-12
    assert "forward" not in vars(model.base_model.layers[0])


@pytest.mark.parametrize("family", ["llama", "olmo", "olmoe"])  # whose modules write to the streams themselves
@torch.no_grad()
def test_what_is_recorded_is_what_the_modules_read_and_wrote(family: str) -> None:
    for model in (exact(family), residual(family)):
        ids = windows()[0]
        recording = record(model, ids)

        assert torch.equal(recording.outputs[0], model.model.embed_tokens(ids))
        for i, layer in enumerate(model.model.layers):
            again = layer.mlp(layer.post_attention_layernorm(recording.block_inputs[2 * i + 1]))
            assert torch.allclose(again, recording.outputs[2 * i + 2], atol=1e-12)
        logits = model.lm_head(model.model.norm(recording.final))
        assert torch.allclose(logits, model(input_ids=ids).logits, atol=1e-12)


@torch.no_grad()
def test_recording_leaves_no_hooks_and_survives_a_failing_model() -> None:
    model = exact()
    before = model(input_ids=windows()[0]).logits

    record(model, windows()[0])
    with pytest.raises(IndexError):
        record(model, torch.full((1, 4), 10_000))

    assert torch.equal(model(input_ids=windows()[0]).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_bf16_model_unfolds_up_to_the_rounding_of_bf16() -> None:
    assert 1e-6 < unfolding_error(record(FAMILIES["llama"].trained().bfloat16(), windows()[0])) < 0.05


# ---- the patterns that the paper prints -----------------------------------------------------------------------------


def hc(*matrices: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Returns alpha and beta of matrices in the paper's form (0 B; A_m A_r), Eq. 1."""
    whole = torch.tensor(matrices, dtype=torch.float64)
    return whole[:, 1:], whole[:, 0, 1:]


SEQUENTIAL = [[0, 1, 1], [1, 1, 0], [0, 0, 1]]  # Eq. 17
PARALLEL_ODD = [[0, 1, 0], [1, 1, 1], [1, 1, 1]]  # Eq. 18
PARALLEL_EVEN = [[0, 0, 1], [0, 1, 0], [1, 0, 1]]  # Eq. 19


@pytest.mark.parametrize("matrices", [[[[0, 1], [1, 1]]] * 6, [SEQUENTIAL] * 6], ids=["Eq. 15", "Eq. 17"])
def test_pre_norm_and_the_sequential_matrix_give_a_triangle_of_ones(matrices: list) -> None:
    matrix, _ = unfold(*hc(*matrices), "mean")

    assert torch.equal(matrix, torch.ones(8, 8, dtype=torch.float64).tril(-1))
    assert parallel_blocks(matrix) == []


def test_post_norm_decays_with_distance() -> None:
    q = 0.5
    matrix, _ = unfold(*hc(*[[[0, q], [1, q]]] * 6), "sum")  # Eq. 16

    for k, j in combinations(range(1, 8), 2):
        assert matrix[j, k] == q ** (j - k)
    decay = weight_by_distance(matrix)
    assert np.allclose(decay.attention, q**decay.index) and np.allclose(decay.mlp.dropna(), q ** decay.index[:-1])


def test_the_parallel_matrices_give_the_jagged_matrix_of_parallel_blocks() -> None:
    matrix, _ = unfold(*hc(*[PARALLEL_ODD, PARALLEL_EVEN] * 8), "sum")

    # Eq. 53: each pair reads h, and the next h is the sum of T(h) + h over both, which doubles the residual.
    row_1, row_3, row_5 = [2], [4, 1, 1], [8, 2, 2, 1, 1]
    for k, row in enumerate([row_1, row_1, row_3, row_3, row_5, row_5, [16, 4, 4, 2, 2, 1, 1]], 1):
        assert matrix[k].tolist() == row + [0] * (18 - len(row))
    assert parallel_blocks(matrix) == [(k, k + 1) for k in range(1, 17, 2)]


def test_streams_that_hold_an_output_with_opposite_signs_cancel() -> None:
    _, held = unfold(*hc([[0, 1, -1], [1, 1, 0], [0, 0, 1]], [[0, 1, 1], [1, 1, 0], [0, 0, 1]]), "sum")

    assert cancellation(held).tolist() == [0, 1, 0]


def test_shares_are_what_arrives_and_do_not_depend_on_the_scale_of_rows() -> None:
    matrix, _ = unfold(*hc([[0, 1], [1, 1]], [[0, 1], [-3, 1]]), "sum")

    parts = shares(matrix, torch.tensor([1.0, 3.0, 4.0]))

    assert parts[1].tolist() == [1, 0, 0, 0]
    assert parts[2].tolist() == [-0.25, -0.75, 0, 0]
    assert parts[3].tolist() == [0.125, 0.375, 0.5, 0]


def test_gains_are_row_and_column_sums_in_the_paper_s_orientation() -> None:
    first = torch.tensor([[1.0, 2.0], [0.0, -4.0]])  # [from, to]: everything flows into stream 2
    second = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    alpha = torch.cat([torch.ones(2, 2, 1), torch.stack([first, second])], dim=-1)

    table = gains(alpha)

    assert table.loc[2].tolist() == [4, 3, 4, 3]
    # through both: from 1 to (1, 2) by 1 * (3, 0) + 2 * (1, 1) = (5, 2), from 2 by -4 * (1, 1)
    assert table.loc[1].tolist() == [6, 4, 9, 8]
    shuffled = torch.eye(3)[[2, 0, 1]]
    doubly_stochastic = torch.cat([torch.ones(3, 1), (shuffled + torch.eye(3)) / 2], dim=1).expand(5, 7, 3, 4)
    assert np.allclose(gains(doubly_stochastic), 1)


def test_the_second_singular_value_tells_how_much_composite_carries_forget() -> None:
    mixing = torch.tensor([[0.8, 0.2], [0.2, 0.8]])  # singular values 1 and 0.6
    alpha = torch.cat([torch.ones(3, 2, 1), torch.stack([mixing, torch.eye(2), mixing])], dim=-1)

    values = second_singular_values(
        torch.stack([alpha, torch.cat([torch.ones(3, 2, 1), torch.eye(2).expand(3, 2, 2)], -1)])
    )

    assert np.allclose(values, [(0.36 + 1) / 2, (0.6 + 1) / 2, (0.6 + 1) / 2])
    model = exact(connection="mhc")
    layers, recording = measure(model, windows()[:1]).layers, record(model, windows()[0])
    last = torch.linalg.svdvals(recording.alpha[-1, ..., 1:])[..., 1].mean().item()
    assert layers.composite_second[6] == pytest.approx(last)
    assert layers.composite_second[1] < last < 1


# ---- statistics over a text -----------------------------------------------------------------------------------------


def test_a_text_in_windows_has_the_statistics_of_all_its_tokens_together() -> None:
    model = exact()
    measurement = measure(model, windows())
    parts = [record(model, window) for window in windows()]

    def every(name: str) -> np.ndarray:  # [K, T, ...]
        return torch.cat([getattr(part, name).flatten(1, 2) for part in parts], dim=1).numpy()

    layers, streams, inputs, outputs = measurement.layers, every("streams"), every("block_inputs"), every("outputs")
    unit = streams / np.linalg.norm(streams, axis=-1, keepdims=True)
    coefficients = np.concatenate([every("alpha"), every("beta")[..., None]], axis=-1)
    static = static_coefficients(model).numpy()[:, None]
    assert measurement.tokens == inputs.shape[1] == 31
    assert measurement.error < 1e-12
    for k in range(1, len(inputs) + 1):
        row = layers.loc[k]
        singular = np.linalg.svd(streams[k - 1], compute_uv=False)
        share = singular / singular.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            ranks = np.exp(-np.nansum(share * np.log(share), axis=-1))
        cosines = [(unit[k - 1][:, a] * unit[k - 1][:, b]).sum(-1) for a, b in combinations(range(4), 2)]
        expected = {"effective_rank": ranks, "stream_cosine": np.concatenate(cosines)}
        if k > 1:
            a, b = inputs[k - 1], inputs[k - 2]
            lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
            expected["similarity"] = (a * b).sum(-1) / lengths
        for name, values in expected.items():
            for ending, level in (("", 0.5), ("_low", 0.05), ("_high", 0.95)):
                quantile = np.quantile(values, level, method="inverted_cdf")
                assert row[name + ending] == pytest.approx(quantile, abs=5e-4), (k, name, ending)
        apart = (coefficients - static)[k - 1].reshape(31, -1)
        assert row.moved == pytest.approx(np.sqrt((apart**2).mean()))
        assert row.varied == pytest.approx(np.sqrt(apart.var(axis=0).mean()))
        assert row.diversity == pytest.approx(1 - np.einsum("tnd,und->tu", unit[k - 1], unit[k - 1]).mean() / 4)
        assert row.output_rms == pytest.approx(np.sqrt((outputs[k] ** 2).mean()))
    assert np.isnan(layers.loc[1, "similarity"])


def test_the_correlation_is_that_of_coefficients_and_streams_over_pairs_of_tokens() -> None:
    model, (window, _) = exact(), windows()
    recording, layers = record(model, window), measure(model, [window]).layers

    for k in range(6):
        far, apart = [], []
        for text in range(2):
            for t, u in combinations(range(12), 2):
                h = recording.streams[k, text]
                far.append(1 - torch.cosine_similarity(h[t], h[u], dim=-1).mean().item())
                change = recording.alpha[k, text, t] - recording.alpha[k, text, u]
                written = recording.beta[k, text, t] - recording.beta[k, text, u]
                apart.append((change.square().sum() + written.square().sum()).sqrt().item())
        assert layers.diversity_correlation[k + 1] == pytest.approx(np.corrcoef(far, apart)[0, 1])


def test_the_movement_of_a_token_is_its_distance_from_the_static_coefficients() -> None:
    model = exact()
    recording = record(model, windows()[0])

    moved = movement(model, recording)

    assert moved.shape == (6, 2, 12)
    assert moved.square().mean((1, 2)).sqrt().tolist() == pytest.approx(
        measure(model, windows()[:1]).layers.moved[1:7]
    )


def test_contributions_add_up_to_the_output() -> None:
    for model in (exact(), exact(stream_reduction="mean"), residual()):
        assert measure(model, windows()).layers.contribution.sum() == pytest.approx(1)


def test_dynamic_matrices_are_averaged_over_tokens_and_static_ones_are_exact() -> None:
    dynamic, static = measure(exact(), windows()), measure(exact(connection="static"), windows())
    parameters = static_coefficients(exact(connection="static"))

    per_token = []
    for window in windows():
        per_token.append(record(exact(), window).unfold()[0].flatten(0, 1))
    assert torch.allclose(dynamic.matrix, torch.cat(per_token).mean(0))
    assert (dynamic.matrix - dynamic.matrix_of_means).abs().max() > 1e-3
    exactly, _ = unfold(parameters[..., :-1], parameters[..., -1], "sum")
    for matrix in (static.matrix, static.matrix_of_means):
        assert torch.allclose(matrix, exactly, atol=1e-12)
    assert "moved" not in static.layers and "moved" in dynamic.layers


def test_a_residual_model_and_its_untrained_twin_have_the_same_matrix_and_similarity(tmp_path: Path) -> None:
    parent = residual()
    parent.save_pretrained(tmp_path)
    twin = FAMILIES["llama"].converted(tmp_path, dtype=torch.float64)

    theirs, mine = measure(parent, windows()), measure(twin, windows())

    assert torch.equal(theirs.matrix, torch.ones(8, 8, dtype=torch.float64).tril(-1))
    assert torch.allclose(mine.matrix, theirs.matrix)
    shared = [name for name in theirs.layers if name != "name"]
    assert np.allclose(mine.layers[shared], theirs.layers[shared], atol=1e-4, equal_nan=True)
    assert np.allclose(mine.layers.effective_rank.dropna(), 1, atol=1e-3)
    assert not {"stream_cosine", "effective_rank", "forward", "moved"} & set(theirs.layers)


# ---- words and pictures ---------------------------------------------------------------------------------------------


def test_the_reading_says_of_an_untrained_twin_what_it_says_of_its_parent(tmp_path: Path) -> None:
    parent = residual()
    parent.save_pretrained(tmp_path)
    twin = FAMILIES["llama"].converted(tmp_path, dtype=torch.float64)

    reading = describe(measure(twin, windows()), measure(parent, windows()))

    for heading, between in (("Where blocks read from", "Of its"), ("Embedding", "In its")):
        of_twin, of_parent = reading[heading].split(f"{between} residual parent")
        assert of_twin.split(",", 1)[1].strip() == of_parent.split(",", 1)[1].strip()
    assert "effective rank of 1 to 1 " in reading["Streams"]
    assert "moves the coefficients by 0 to 0 " in reading["The dynamic part"]
    assert reading["Parallel blocks"] == "No neighbouring blocks ignore each other."
    assert not any("nan" in words.split() for words in reading.values())


def test_the_parts_that_a_small_model_reads_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, of three layers: block 4 has the bottom's last layer just before it."""
    parts = torch.zeros(8, 8)
    parts[4, :4] = torch.tensor([0.1, 0.1, -0.2, 0.6])
    parts[5, :5] = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.5])
    parts[6, :6] = torch.tensor([0.0, 0.0, 0.1, 0.3, -0.2, 0.4])
    measurement = measure(exact(), windows())
    monkeypatch.setattr(type(measurement), "shares", parts)

    words = describe(measurement)["Where blocks read from"]

    assert "blocks 4 to 6 take 63% of what they read from the two blocks just before, 27% from the bottom" in words


def test_the_reading_names_the_stream_that_is_worth_most() -> None:
    table = pandas.DataFrame(
        {"untouched": 2.0, "ablated": [2.5, 3.0, 2.1, 2.0], "rescued": [2.1, 2.5, np.nan, np.nan]},
        index=pandas.MultiIndex.from_product([[1, 2], [1, 2]], names=["block", "stream"]),
    )

    words = describe(measure(exact(), windows()), ablation=table)["Ablate and rescue"]

    assert "+1 at worst: stream 2 before block 1" in words
    assert "60% of the whole rise is undone" in words  # 0.9 of 1.5


def test_figures_draw_the_numbers() -> None:
    model, parent = measure(exact(), windows()), measure(residual(), windows())

    drawn = plots.connection_matrices({"model": model.matrix, "parent": parent.matrix}).axes
    for ax, matrix in zip(drawn, (model.matrix, parent.matrix), strict=False):
        values = ax.images[0].get_array()
        assert np.array_equal(values.compressed(), matrix[1:, :-1][np.tril_indices(7)])
    assert drawn[0].images[0].norm.vmin == -drawn[0].images[0].norm.vmax
    (ax,) = plots.similarity({"model": model, "parent": parent}).axes
    for line, measurement in zip(ax.lines, (model, parent), strict=True):
        assert np.array_equal(line.get_ydata(), measurement.layers.similarity.dropna())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["model", "parent"]


# ---- ablation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_zeroed_stream_is_one_whose_coefficients_are_zero() -> None:
    model = exact(connection="static")
    table = ablate_and_rescue(model, windows()[:1])

    ids = windows()[0]
    for k, connection in ((2, model.model.layers[0].mlp_hc), (5, model.model.layers[2].attn_hc)):
        kept = connection.alpha_bias[3].clone()
        connection.alpha_bias[3] = 0
        assert table.ablated[k, 4] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), abs=1e-9)
        connection.alpha_bias[3] = kept
    assert table.untouched[1, 1] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), abs=1e-12)
    assert (table.ablated - table.untouched).abs().max() > 0.01
    assert table.rescued.isna().groupby("block").all().tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@torch.no_grad()
def test_giving_a_stream_back_undoes_the_ablation_if_nothing_read_it_before(ablation: str) -> None:
    model = exact(connection="static")
    for layer in model.model.layers[:2]:
        for connection in (layer.attn_hc, layer.mlp_hc):
            connection.alpha_bias[2] = torch.tensor([0.0, 0, 0, 1, 0])  # stream 3 only carries itself

    table = ablate_and_rescue(model, windows(), blocks=[3], rescue_after=2, ablation=ablation)

    assert (table.ablated - table.untouched)[3, 3] != 0
    assert table.rescued[3, 3] == pytest.approx(table.untouched[3, 3], abs=1e-12)
    assert abs(table.rescued - table.untouched)[3, 1] > 1e-6  # which blocks did read


# ---- what is rejected -----------------------------------------------------------------------------------------------


def test_bad_input_is_rejected_by_name() -> None:
    sizes = {"vocab_size": 99, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    foreign = AutoModelForCausalLM.from_config(GemmaConfig(**sizes, num_key_value_heads=2, intermediate_size=32))
    other = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=99, n_layer=1, n_embd=32, n_head=2))
    for model in (foreign, other):
        with pytest.raises(ValueError, match=f"model_type='{model.config.model_type}'.*llama"):
            measure(model, windows())
    with pytest.raises(ValueError, match="residual model, which has none"):
        ablate_and_rescue(residual(), windows())
    for model in (hyper_connect(AutoModel.from_config(residual().config)), test_modeling_hc_vit.trained()):
        with pytest.raises(ValueError, match=f"{type(model).__name__} is no language model with a head"):
            ablate_and_rescue(model, windows())
    with pytest.raises(ValueError, match="residual model, which has none"):
        movement(residual(), record(residual(), windows()[0]))
    with pytest.raises(ValueError, match="S of 2 or more"):
        measure(exact(), [torch.ones(1, 1, dtype=torch.long)])
    with pytest.raises(ValueError, match="at least one window"):
        measure(exact(), [])
    with pytest.raises(ValueError, match="blocks has 7"):
        ablate_and_rescue(exact(), windows(), blocks=[7])
    with pytest.raises(ValueError, match="rescue_after=0"):
        ablate_and_rescue(exact(), windows(), rescue_after=0)
