# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The recipes of the paper's models have the paper's numbers of parameters, to the last unit.

Source: Table 7 and Eq. 21, 25 of arXiv 2409.19606. The table prints billions; the exact numbers are those of the
published architectures plus the equations, and round to the table's. For OLMoE the table leaves out the block and
final norms of the residual model and, against the paper's text, the norm weights of the hyper-connections.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from modeling_hc.recipes import load_recipe

RECIPES = Path(__file__).parents[1] / "configuration" / "models"
OLMO_1B, OLMO_7B, OLMOE = 1_176_764_416, 6_888_095_744, 6_919_161_856
OLMOE_NORMS = 2048 * (2 * 16 + 1)


def parameters(recipe: str, **changes: str) -> int:
    config = load_recipe(RECIPES / f"{recipe}.json")
    config.update(changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.num_parameters()


def shc(streams: int, blocks: int) -> int:
    """Eq. 21."""
    return blocks * streams * (streams + 2)


def dhc(streams: int, blocks: int, hidden_size: int, norm: int) -> int:
    """Eq. 25."""
    return blocks * (norm + hidden_size * (streams + 2) + streams * (streams + 2) + 2)


@pytest.mark.parametrize(
    ("recipe", "exact", "by_equation"),
    [
        ("olmo-1b", 1_176_764_416, OLMO_1B),
        ("olmo-1b-shc2", 1_176_764_672, OLMO_1B + shc(2, 32)),
        ("olmo-1b-shc4", 1_176_765_184, OLMO_1B + shc(4, 32)),
        ("olmo-1b-dhc1", 1_176_961_184, OLMO_1B + dhc(1, 32, 2048, 0)),
        ("olmo-1b-dhc2", 1_177_026_880, OLMO_1B + dhc(2, 32, 2048, 0)),
        ("olmo-1b-dhc4", 1_177_158_464, OLMO_1B + dhc(4, 32, 2048, 0)),
        ("olmo-1b-dhc8", 1_177_422_400, OLMO_1B + dhc(8, 32, 2048, 0)),
        ("olmo-7b", 6_888_095_744, OLMO_7B),
        ("olmo-7b-dhc4", 6_889_670_272, OLMO_7B + dhc(4, 64, 4096, 0)),
        ("olmoe-1b-7b", 6_919_161_856, OLMOE),
        ("olmoe-1b-7b-dhc4", 6_919_621_440, OLMOE + dhc(4, 32, 2048, norm=2048)),
    ],
)
def test_a_recipe_of_the_paper_has_its_number_of_parameters(recipe: str, exact: int, by_equation: int) -> None:
    assert parameters(recipe) == exact == by_equation


def test_four_fractions_of_olmoe_have_the_parameters_of_their_paper() -> None:
    """The number of DFCx4 in arXiv 2503.14125."""
    assert parameters("olmoe-1b-7b-dhc4", connection="frac") == OLMOE + 165_056


@pytest.mark.parametrize(
    ("exact", "printed"),
    [
        (OLMO_1B, 1.17676442),
        (OLMO_1B + shc(2, 32), 1.17676467),
        (OLMO_1B + shc(4, 32), 1.17676518),
        (OLMO_1B + dhc(2, 32, 2048, 0), 1.17702688),
        (OLMO_1B + dhc(4, 32, 2048, 0), 1.17715846),
        (OLMO_7B, 6.88809574),
        (OLMO_7B + dhc(4, 64, 4096, 0), 6.88967027),
        (OLMOE - OLMOE_NORMS, 6.91909427),
        (OLMOE - OLMOE_NORMS + dhc(4, 32, 2048, norm=0), 6.91948832),
    ],
)
def test_the_exact_numbers_round_to_those_of_table_7(exact: int, printed: float) -> None:
    assert round(exact / 1e9, 8) == printed


@pytest.mark.parametrize(
    ("recipe", "residual", "blocks", "hidden_size"),
    [  # residual: what the page of the published checkpoint on the Hub states
        ("mistral-7b", 7_241_732_096, 64, 4096),
        ("mixtral-8x7b", 46_702_792_704, 64, 4096),
        ("qwen2.5-0.5b", 494_032_768, 48, 896),
        ("qwen3-0.6b", 596_049_920, 56, 1024),
        ("qwen3-30b-a3b", 30_532_122_624, 96, 2048),
        ("olmo2-1b", 1_484_916_736, 32, 2048),
        ("gemma3-270m", 268_098_176, 36, 640),
        ("smollm3-3b", 3_075_098_624, 72, 2048),
        ("pythia-160m", 162_322_944, 12, 768),  # one block a layer
    ],
)
def test_a_recipe_of_another_family_has_the_parameters_of_its_residual_parent_and_eq_25(
    recipe: str, residual: int, blocks: int, hidden_size: int
) -> None:
    assert parameters(f"{recipe}-dhc4") == residual + dhc(4, blocks, hidden_size, norm=hidden_size)


@pytest.mark.parametrize(
    ("recipe", "exact", "hidden_size", "layers"),
    [("vit-base", 86_567_656, 768, 12), ("vit-large", 304_326_632, 1024, 24)],
)
def test_the_vits_of_the_paper_have_the_parameters_of_the_published_ones_and_eq_21_and_25(
    recipe: str, exact: int, hidden_size: int, layers: int
) -> None:
    # ViT-B/16 and ViT-L/16 for the 1000 classes of ImageNet: google/vit-base-patch16-224 and vit-large-patch16-224.
    added = {
        "": 0,
        "-shc2": shc(2, 2 * layers),
        "-dhc2": dhc(2, 2 * layers, hidden_size, norm=hidden_size),
        "-dhc4": dhc(4, 2 * layers, hidden_size, norm=hidden_size),
    }
    numbers = {"vit-base": [192, 92_400, 129_648], "vit-large": [384, 246_240, 345_312]}
    assert list(added.values())[1:] == numbers[recipe]
    for variant, more in added.items():
        config = load_recipe(RECIPES / f"{recipe}{variant}.json", id2label=dict(enumerate(map(str, range(1000)))))
        with torch.device("meta"):
            model = AutoModelForImageClassification.from_config(config)
        assert model.num_parameters() == exact + more


def test_the_variants_without_tanh_differ_in_nothing_else() -> None:
    for recipe in RECIPES.glob("*-notanh.json"):
        bounded = load_recipe(recipe.with_name(recipe.name.replace("-notanh", ""))).to_dict()
        assert load_recipe(recipe).to_dict() == bounded | {"use_tanh": False}
        assert bounded["use_tanh"]
