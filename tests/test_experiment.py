# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/experiment.py: small grids with the real Trainer on real text, and what is read from their numbers."""

import itertools
import json
import lzma
import math
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from filelock import FileLock
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from modeling_hc.analysis.recording import connections
from modeling_hc.commands import experiment
from modeling_hc.data import stdlib_files
from modeling_hc.experiments import training
from modeling_hc.experiments.report import (
    BASELINE,
    CLAIMS,
    OPEN,
    VISION,
    Claim,
    Estimate,
    compare,
    convergence,
    difference,
    measured,
    render,
    tokens_to_reach,
    verdict,
    write_report,
)
from modeling_hc.experiments.results import find_run, load_results, save_run
from modeling_hc.experiments.setup import Blocks, load_experiment, load_tokens
from modeling_hc.experiments.training import check_earlier, check_patterns, make_model, make_trainer
from modeling_hc.recipes import find_recipe

ROOT = Path(__file__).parents[1]

EXPERIMENT = {
    "data": {"name": "tiny", "train": "train/*.txt", "validation": {"held": "held.txt", "other": "other.txt"}},
    "model": {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    },
    "seeds": [0],
    "tokens": 16 * 4 * 32,
    "batch_size": 4,
    "block_size": 32,
    "evaluations": 4,
    "eval_blocks": 6,
    "final_blocks": 9,
    "training": {"learning_rate": 1e-2, "weight_decay": 0.1},
    "variants": {
        "residual": None,
        "dhc-4": {"model": {"num_streams": 4, "stream_reduction": "mean", "output_rescaling": "none"}},
        "frozen": {"model": {"num_streams": 2}, "freeze": r"_hc\.alpha"},
        "undecayed": {"model": {"num_streams": 2}, "undecayed": "_scale$"},
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder of texts, and the experiment's file."""
    home = tmp_path_factory.mktemp("experiment")
    (home / "train").mkdir()
    texts = [path.read_text(encoding="utf-8")[:2000] for path in stdlib_files("train")[:14]]
    for i, text in enumerate(texts[:10]):
        (home / "train" / f"{i}.txt").write_text(text)
    (home / "held.txt").write_text("\n".join(texts[10:12]))
    (home / "other.txt").write_text("\n".join(texts[12:]))
    (home / "grid.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    return home


def call(
    home: Path, *flags: str, action: str = "run", results: str = "results", work: str = "work", file: str = "grid.yaml"
) -> None:
    folders = ["--data", str(home), "--results", str(home / results), "--work", str(home / work)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiment.py", action, str(home / file), *folders, *flags])
        experiment.main()


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
LABELS = np.arange(40) % 3
OF_IMAGES = EXPERIMENT | {
    "data": {"name": "pictures", "train": "pictures.parquet", "validation": {"held": "pictures.parquet"}},
    "model": {
        "model_type": "vit",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 2,
        "id2label": {0: "a", 1: "b", 2: "c"},
    },
    "tokens": 8 * 4 * 16,
    "block_size": 16,
    "variants": {"residual": None, "dhc-2": {"model": {"num_streams": 2}}},
}


@pytest.fixture(scope="module")
def pictures(home) -> Path:
    """The folder, with images and the file of an experiment on them."""
    rows = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": LABELS}
    Dataset.from_dict(rows, Features(image=ImageFeature(), label=Value("int64"))).to_parquet(home / "pictures.parquet")
    (home / "pictures.yaml").write_text(yaml.safe_dump(OF_IMAGES, sort_keys=False))
    return home


@pytest.fixture(scope="module")
def finished(home) -> dict[str, dict]:
    """The numbers of the whole grid."""
    call(home)
    return {
        f"{name}-s{seed}": run
        for name, seeds in load_results(home / "results")["grid"].items()
        for seed, run in seeds.items()
    }


def test_a_run_keeps_every_step_and_evaluation_with_what_made_them(finished):
    assert set(finished) == {"residual-s0", "dhc-4-s0", "frozen-s0", "undecayed-s0"}
    for result in finished.values():
        assert len(result["losses"]) == 16
        assert [point["tokens"] for point in result["evaluations"]] == [512, 1024, 1536, 2048]
        assert result["evaluations"][-1]["seconds"] > result["evaluations"][0]["seconds"] > 0
        assert result["losses"][-1] < result["losses"][0] - 0.3
        assert result["seed"] == 0 and result["command"].startswith("python experiment.py run")
        assert result["versions"]["torch"] == torch.__version__
    assert finished["residual-s0"]["evaluations"][-1]["health"].keys() == {"input_cosine"}
    assert finished["dhc-4-s0"]["evaluations"][-1]["health"]["dynamic_size"] > 0
    assert finished["dhc-4-s0"]["settings"]["model"]["num_streams"] == 4


def test_the_final_losses_are_those_of_the_saved_model_on_evenly_spread_blocks(home, finished):
    """Token by token in fp64, from the model's folder and the text's bytes."""
    model = AutoModelForCausalLM.from_pretrained(home / "work" / "grid" / "dhc-4-s0").double()
    ids = np.frombuffer(lzma.decompress((home / "work" / "data-tiny" / "other.xz").read_bytes()), np.uint16)
    blocks = torch.tensor(ids[: len(ids) // 32 * 32].astype(np.int64)).view(-1, 32)
    blocks = blocks[[round(i * (len(blocks) - 1) / 8) for i in range(9)]]
    with torch.no_grad():
        logits = model(input_ids=blocks).logits[:, :-1]
    nll = -logits.log_softmax(-1).gather(-1, blocks[:, 1:, None]).mean().item()
    final = finished["dhc-4-s0"]["final"]["other"]
    assert final["loss"] == pytest.approx(nll, abs=1e-5)
    tokens_per_byte = len(ids) / len((home / "other.txt").read_bytes())
    assert final["bits_per_byte"] == pytest.approx(nll / math.log(2) * tokens_per_byte, abs=1e-5)
    assert final["tokens"] == 9 * 31


def test_an_experiment_on_images_keeps_the_loss_and_accuracy_of_the_saved_model(pictures, capsys):
    """Of evenly spread images, in fp64; run twice, with the second call finding all done."""
    for _ in range(2):
        call(pictures, results="results-pictures", file="pictures.yaml")
    assert "2 of 2 runs are done" in capsys.readouterr().out
    write_report(pictures / "results-pictures")
    report = (pictures / "results-pictures" / "README.md").read_text()
    assert "| loss on held | accuracy | difference, held | difference, accuracy | tokens needed |" in report

    chosen = [round(i * 39 / 8) for i in range(9)]
    pixels = torch.tensor(PIXELS[chosen]).movedim(-1, 1).double() / 255 * 2 - 1
    for name in ("residual", "dhc-2"):
        result = find_run(pictures / "results-pictures", "pictures", name, 0)
        model = AutoModelForImageClassification.from_pretrained(pictures / "work" / "pictures" / f"{name}-s0").double()
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits
        labels = torch.tensor(LABELS[chosen])
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        accuracy = (logits.argmax(-1) == labels).double().mean().item()
        assert result["final"]["held"] == {"loss": pytest.approx(loss, abs=1e-6), "accuracy": accuracy, "images": 9}
        assert [point["tokens"] for point in result["evaluations"]] == [128, 256, 384, 512]
        assert result["evaluations"][-1]["health"]["input_cosine"] <= 1 and "accuracy" in result["evaluations"][-1]
        assert result["epochs"] == pytest.approx(8 * 4 / 40)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 8}, "block_size=8 of .* must be its model's 16 patches"),
        ({"data": OF_IMAGES["data"] | {"documents": 3}}, "documents of .* is for text"),
        (
            {"model": OF_IMAGES["model"] | {"image_size": 6}, "block_size": 9},
            r"are of \[8, 8, 3\].* reads \[6, 6, 3\]",
        ),
        ({"model": OF_IMAGES["model"] | {"id2label": {0: "a", 1: "b"}}}, "of 3 classes; .* tells 2 classes apart"),
        ({"data": OF_IMAGES["data"] | {"train": "absent*"}}, r"No file .* matches absent\*"),
    ],
)
def test_images_that_do_not_fit_the_model_are_rejected_by_name(pictures, change, message):
    (pictures / "unfit.yaml").write_text(yaml.safe_dump(OF_IMAGES | change))
    with pytest.raises(ValueError, match=message):
        load_tokens(load_experiment(pictures / "unfit.yaml"), pictures, pictures / "work")


def test_steps_on_images_are_timed_and_lm_eval_is_not_asked_about_them(pictures):
    call(pictures, "--rounds", "2", action="time", results="timed", file="pictures.yaml")
    steps = json.loads((pictures / "timed" / "pictures" / "step-time.json").read_text())["steps"]
    assert steps.keys() == {"residual", "dhc-2"}
    with pytest.raises(SystemExit, match="pictures is of images, and lm-eval asks for text"):
        call(pictures, action="evaluate", file="pictures.yaml")


def test_runs_of_a_seed_begin_with_the_same_weights_and_see_the_same_blocks(finished):
    """Four streams, not rescaled and averaged, are the residual network until the first update."""
    assert finished["dhc-4-s0"]["losses"][0] == pytest.approx(finished["residual-s0"]["losses"][0], abs=2e-4)
    assert finished["dhc-4-s0"]["losses"][8] != finished["residual-s0"]["losses"][8]


def test_frozen_parameters_keep_their_initial_values_and_the_others_do_not(home, finished):
    state = AutoModelForCausalLM.from_pretrained(home / "work" / "grid" / "frozen-s0").state_dict()
    for layer in range(2):
        for k, block in enumerate(("attn_hc", "mlp_hc")):
            prefix = f"model.layers.{layer}.{block}"
            read = torch.eye(2)[:, [(2 * layer + k) % 2]]
            assert torch.equal(state[f"{prefix}.alpha_bias"], torch.cat([read, torch.eye(2)], dim=1))
            assert not state[f"{prefix}.alpha_weight"].any()
            assert not torch.equal(state[f"{prefix}.beta_bias"], torch.ones(2))


def test_without_a_home_stream_every_block_first_reads_the_mean_of_the_streams(home):
    variant = {"home_stream": False, "model": {"num_streams": 4, "connection": "mhc"}}
    (home / "homeless.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"variants": {"mhc": variant}}))
    model = make_model(load_experiment(home / "homeless.yaml"), "mhc", 0, home / "unused")

    for connection in connections(model):
        alpha, _ = connection.static_coefficients()
        assert alpha[:, 0].tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("model", [{"num_streams": 4}, {}])
def test_only_a_joint_variant_can_be_without_a_home_stream(home, model):
    variants = {"other": {"home_stream": False, "model": model}}
    (home / "homeless.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"variants": variants}))

    with pytest.raises(ValueError, match="home_stream=false of variant other is for the joint variants"):
        check_patterns(load_experiment(home / "homeless.yaml"), ["other"])


def test_an_undecayed_parameter_is_in_the_group_without_weight_decay(home, finished):
    grid = load_experiment(home / "grid.yaml")
    tokens = load_tokens(grid, home, home / "work")
    decays = {}
    for name in ("frozen", "undecayed"):
        trainer = make_trainer(grid, name, 0, tokens, home / "unused", math.inf)
        groups = trainer.create_optimizer().param_groups
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        decays[name] = {key.rpartition(".")[2] for key, p in trainer.model.named_parameters() if id(p) in decayed}
    assert decays["frozen"] - decays["undecayed"] == {"beta_scale"}  # alpha_scale is frozen there
    assert "beta_weight" in decays["undecayed"]


def test_a_run_that_was_paused_ends_with_the_same_numbers_and_all_its_seconds(home, finished, capsys, monkeypatch):
    """By a clock that ticks once at the start and once at the end of a step: 16 steps are 16 seconds."""
    monkeypatch.setattr(
        training, "time", SimpleNamespace(perf_counter=itertools.count().__next__, monotonic=time.monotonic)
    )
    folders = {"results": "again", "work": "work-again"}
    calls = 0
    while not find_run(home / "again", "grid", "dhc-4", 0):
        call(home, "--variants", "dhc-4", "--minutes", "0", **folders)  # one step at a time
        calls += 1
    assert calls == 16 and capsys.readouterr().out.count("paused") == 15
    again = find_run(home / "again", "grid", "dhc-4", 0)
    assert again["losses"] == finished["dhc-4-s0"]["losses"]
    assert again["final"] == finished["dhc-4-s0"]["final"]
    assert [point["seconds"] for point in again["evaluations"]] == [4, 8, 12, 16]


def test_what_is_done_or_held_by_another_process_is_not_run(home, finished, monkeypatch):
    monkeypatch.setattr(experiment, "run_one", lambda *args: pytest.fail("a run was started"))
    call(home)
    with FileLock(home / "work" / "grid" / "residual-s7.lock"):
        call(home, "--variants", "residual", "--seeds", "7")


def test_an_experiment_can_start_from_the_models_of_another_without_changing_their_outputs(home, finished):
    values = EXPERIMENT | {"start": "grid/residual", "tokens": 4 * 4 * 32}
    values["variants"] = {name: EXPERIMENT["variants"][name] for name in ("residual", "dhc-4")}
    (home / "continued.yaml").write_text(yaml.safe_dump(values))
    continued = load_experiment(home / "continued.yaml")
    ids = torch.arange(64).view(2, 32)
    models = [make_model(continued, name, 0, home / "work").eval() for name in ("residual", "dhc-4")]
    with torch.no_grad():
        one, other = (model(input_ids=ids).logits for model in models)
    assert torch.equal(one, other) and one.std() > 0.1
    with pytest.raises(ValueError, match=r"starts from .*residual-s5, which is not there"):
        make_model(continued, "residual", 5, home / "work")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": 1}, "'token' is not a field of .*did you mean 'tokens'"),
        ({"training": {"learning_rat": 1}}, "'learning_rat' of .*did you mean 'learning_rate'"),
        ({"variants": {"a": {"modl": {}}}}, "'modl' is not a field of variant a .*did you mean 'model'"),
        ({"variants": {"a": {"model": {"num_stream": 2}}}}, "num_stream"),
        ({"tokens": 100}, "tokens=100 of .* are 0 steps .* fewer than its 4 evaluations"),
        ({"tokens": "1e5"}, "'tokens': TypeError: Field 'tokens' expected int, got str"),
        ({"batch_size": 0}, "batch_size=0 of .* has to be 1 or more"),
        ({"final_blocks": 0}, "final_blocks=0 of .* has to be 1 or more"),
        ({"block_size": 64, "tokens": 9999}, "block_size=64 of .* is more than its model's 32"),
        ({"seeds": []}, "needs a variant and a seed"),
        ({"seeds": [-1]}, "-1 cannot be a seed"),
        ({"variants": []}, r"variants of .* names and values, and is \[\]"),
        ({"variants": {"../a": {}}}, "'../a' of .* cannot name a variant"),
        ({"variants": {"a": {"freeze": "(("}}}, r"freeze of variant a of .* is no pattern"),
        ({"training": {"learning_rate": "1e-3"}}, "learning_rate='1e-3' of .* is not a number"),
        ({"training": {"max_steps": 3}}, "'max_steps' under training of .* the experiment's own fields decide"),
        ({"data": EXPERIMENT["data"] | {"validation": {"train": "x"}}}, "none may have the name 'train'"),
        ({"data": EXPERIMENT["data"] | {"documents": 0}}, "documents=0 of .* has to be 1 or more"),
        ({"data": {"name": "x"}}, "missing .* 'train' and 'validation'"),
    ],
)
def test_a_wrong_field_is_rejected_by_name(home, change, message):
    (home / "wrong.yaml").write_text(yaml.safe_dump(EXPERIMENT | change))
    with pytest.raises(ValueError, match=message):
        load_experiment(home / "wrong.yaml")


@pytest.mark.parametrize("field", ["freeze", "undecayed"])
def test_a_pattern_that_matches_nothing_is_rejected_before_the_first_run(home, finished, field, monkeypatch):
    monkeypatch.setattr(experiment, "run_one", lambda *args: pytest.fail("a run was started"))
    grid = load_experiment(home / "grid.yaml")
    setattr(grid.variants["dhc-4"], field, "hc_alpha")
    with pytest.raises(ValueError, match=f"{field}='hc_alpha' of variant dhc-4 matches no parameter"):
        check_patterns(grid, grid.variants)


@pytest.mark.parametrize("change", [{"tokens": 12 * 4 * 32}, {"training": {"learning_rate": 1e-3}}])
def test_a_changed_experiment_takes_neither_results_nor_checkpoints_of_the_old_one(home, finished, change):
    (home / "changed").mkdir(exist_ok=True)
    (home / "changed" / "grid.yaml").write_text(yaml.safe_dump(EXPERIMENT | change, sort_keys=False))
    arguments = ["experiment.py", "run", str(home / "changed" / "grid.yaml"), "--work", str(home / "work")]
    for results, named in ((home / "results", "residual-s0 in .*runs.jsonl"), (home / "none", "made-from.json")):
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(SystemExit, match=f"{named} is of a run with .*now has"),
        ):
            patch.setattr(sys, "argv", [*arguments, "--results", str(results), "--variants", "residual"])
            experiment.main()


def test_steps_are_timed_against_the_first_variant_whatever_is_asked_for(home, finished):
    call(home, "--variants", "dhc-4", "--rounds", "2", action="time", results="timed")
    record = json.loads((home / "timed" / "grid" / "step-time.json").read_text())
    assert record["baseline"] == "residual" and record["steps"].keys() == {"residual", "dhc-4"}
    assert record["steps"]["residual"]["ratio"] == 1 and record["steps"]["dhc-4"]["ratio"] > 0


def test_models_that_are_not_there_are_told_before_they_are_evaluated(home, finished):
    with pytest.raises(SystemExit, match=r"nowhere/grid holds no finished model.*--results"):
        call(home, action="evaluate", work="nowhere")


def test_text_that_is_missing_is_told_before_anything_is_made(home, tmp_path):
    grid = load_experiment(home / "grid.yaml")
    with pytest.raises(ValueError, match=r"No file in the folder of texts .* matches train/\*\.txt.*--data"):
        load_tokens(grid, tmp_path, tmp_path / "work")
    assert not list((tmp_path / "work").glob("data-tiny/*"))


def test_tokens_made_otherwise_are_not_taken(home, finished):
    grid = load_experiment(home / "grid.yaml")
    grid.data.documents = 3
    with pytest.raises(ValueError, match=r"asks for .*'documents': 3"):
        load_tokens(grid, home, home / "work")


@pytest.mark.parametrize("path", sorted((ROOT / "configuration" / "experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_of_the_repository_loads(path):
    grid = load_experiment(path)
    assert grid.steps >= 100 and grid.variants
    positions = getattr(grid.config(next(iter(grid.variants))), "max_position_embeddings", grid.block_size)
    assert grid.block_size <= positions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-125m", "olmoe-125m-290m"])
def test_an_experiment_for_gpus_runs_at_toy_size_cut_into_pieces(name, home, finished, monkeypatch):
    """All but the sizes is as in its file: bf16, compiled, its recipe, its variants."""
    values = yaml.safe_load((ROOT / "configuration" / "experiments" / f"{name}.yaml").read_text())
    model = json.loads(find_recipe("models", values["model"]).read_text()) | {
        "hidden_size": 32,
        "num_hidden_layers": 2,
    }
    model |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model |= {"vocab_size": 300, "intermediate_size": 48}
    sizes = {key: EXPERIMENT[key] for key in ("data", "seeds", "batch_size", "block_size", "eval_blocks")}
    values |= sizes | {"model": model, "tokens": 8 * 4 * 32, "evaluations": 2}
    values["training"]["warmup_steps"] = 2
    (home / "toy").mkdir(exist_ok=True)
    (home / "toy" / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    folders = ["--data", str(home), "--results", str(home / "results-toy"), "--work", str(home / "work")]
    arguments = [
        "experiment.py",
        "run",
        str(home / "toy" / f"{name}.yaml"),
        *folders,
        "--variants",
        "residual",
        "dhc-4",
    ]
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0"])
    experiment.main()
    assert not (home / "results-toy" / name).exists()
    monkeypatch.setattr(sys, "argv", arguments)
    experiment.main()
    for variant in ("residual", "dhc-4"):
        result = find_run(home / "results-toy", name, variant, 0)
        assert len(result["losses"]) == 8 and result["losses"][-1] < result["losses"][0]


def test_blocks_are_taken_evenly_and_the_rest_is_left():
    blocks = Blocks(np.arange(107, dtype=np.uint16), 10, 4)
    assert [blocks[i]["input_ids"][0].item() for i in range(4)] == [0, 30, 60, 90]
    assert len(Blocks(np.arange(107, dtype=np.uint16), 10)) == 10


def fake(variant: str, seed: int, curve: list[float], final: float | None = None) -> dict:
    points = [{"tokens": 100 * (i + 1), "loss": loss, "seconds": i, "health": {}} for i, loss in enumerate(curve)]
    return {
        "experiment": "llama-0.3m",
        "variant": variant,
        "seed": seed,
        "parameters": 10,
        "tokens": 100 * len(curve),
        "evaluations": points,
        "final": {"held": {"loss": final or curve[-1]}},
    }


def runs(*results: dict) -> dict:
    grouped: dict = {}
    for result in results:
        grouped.setdefault(result["variant"], {})[result["seed"]] = result
    return grouped


def test_differences_are_paired_by_seed_and_their_error_is_students():
    """By hand: differences -0.1, -0.2, -0.3; s = 0.1, standard error 0.1/sqrt(3), interval 4.3027 times that."""
    grid = runs(*(fake(BASELINE, s, [5.0 + s]) for s in range(4)), *(fake("a", s, [4.9 + 0.9 * s]) for s in range(3)))
    estimate = difference(grid, "a")
    assert estimate.values == pytest.approx((-0.1, -0.2, -0.3))
    assert estimate.mean == pytest.approx(-0.2)
    assert estimate.error == pytest.approx(0.057735, abs=1e-6)
    assert estimate.interval == pytest.approx(0.248414, abs=1e-5)
    assert estimate.text() == "−0.200 ± 0.058"  # noqa: RUF001
    assert verdict(Claim("", "a", True, BASELINE), estimate) == "not decided"


def test_a_verdict_needs_an_interval_that_leaves_zero_out():
    sure, one = Estimate((-0.2, -0.21, -0.19)), Estimate((-0.2,))
    assert verdict(Claim("", "a", True, "b"), sure) == "holds"
    assert verdict(Claim("", "a", False, "b"), sure) == "the reverse holds"
    assert verdict(Claim("", "a", None, "b"), sure) == "lower loss"
    assert verdict(Claim("", "a", True, "b"), one) == "not decided"


def test_a_gain_is_compared_between_experiments_seed_by_seed():
    """By hand: gains of -0.3 and -0.5 against -0.1 and -0.2; a third seed lacks a run."""
    small = runs(*(fake(BASELINE, s, [5.0]) for s in range(3)), *(fake("a", s, [4.9 - 0.1 * s]) for s in range(3)))
    large = runs(*(fake(BASELINE, s, [4.0]) for s in range(3)), *(fake("a", s, [3.7 - 0.2 * s]) for s in range(2)))
    claim = Claim("", "a", True, BASELINE, "large", than="small")
    assert measured({"small": small, "large": large}, claim).values == pytest.approx((-0.2, -0.3))
    assert measured({"small": small}, claim) is None


def test_a_claim_about_accuracy_holds_where_it_is_higher():
    """By hand: differences of 0.1, 0.2 and 0.15, whose 95 % interval is 0.15 ± 0.124."""
    results = []
    for seed, (one, other) in enumerate(((0.5, 0.6), (0.5, 0.7), (0.6, 0.75))):
        results += [fake(BASELINE, seed, [5.0]), fake("a", seed, [4.0])]
        results[-2]["final"]["held"]["accuracy"], results[-1]["final"]["held"]["accuracy"] = one, other
    grid = {"vit": runs(*results)}
    claim = Claim("", "a", False, BASELINE, "vit", measure="accuracy")
    estimate = measured(grid, claim)
    assert estimate.values == pytest.approx((0.1, 0.2, 0.15)) and estimate.interval == pytest.approx(0.124, abs=1e-3)
    assert verdict(claim, estimate) == "holds"
    assert verdict(Claim("", "a", None, BASELINE, "vit", measure="accuracy"), estimate) == "higher accuracy"


def test_tokens_to_a_loss_are_interpolated_between_evaluations():
    result = fake("a", 0, [6.0, 5.0, 4.0, 4.5])
    assert tokens_to_reach(result, 4.5) == pytest.approx(250)
    assert tokens_to_reach(result, 6.5) == 100
    assert tokens_to_reach(result, 3.9) is None
    grid = runs(fake(BASELINE, 0, [6.0, 5.5, 5.0, 4.5]), fake("a", 0, [6.0, 5.0, 4.0, 4.5]), fake("a", 1, [9.0]))
    part, missing = convergence(grid, "a")
    assert part.values == pytest.approx((250 / 400,)) and missing == 0  # seed 1 has no residual run
    assert convergence(runs(fake(BASELINE, 0, [4.0]), fake("a", 0, [5.0])), "a") == (None, 1)


def test_a_repeated_pair_agrees_within_the_spread_of_seeds_only():
    committed = runs(
        *(fake(BASELINE, s, [5.0]) for s in range(3)),
        *(fake("dhc-4", s, [5.0 + d]) for s, d in enumerate((-0.1, -0.11, -0.12))),
    )
    near = runs(fake(BASELINE, 0, [5.01]), fake("dhc-4", 0, [4.88]))
    far = runs(fake(BASELINE, 0, [5.01]), fake("dhc-4", 0, [4.95]))
    assert compare(committed, near)[0] and not compare(committed, far)[0]
    assert "DISAGREES" in compare(committed, far)[1]


def test_the_report_of_a_grid_is_drawn_from_its_files_alone(home, finished):
    template = home / "results" / "README.md.jinja"
    template.write_text("{{ table('grid') }}\n")
    paths = write_report(home / "results")
    assert {path.name for path in paths} == {"losses.png", "README.md"}
    text = (home / "results" / "README.md").read_text()
    gap = finished["dhc-4-s0"]["final"]["held"]["loss"] - finished["residual-s0"]["final"]["held"]["loss"]
    assert f"| {gap:+.3f} (one seed)".replace("-", "−") in text  # noqa: RUF001
    assert "| frozen |" in text and "difference, other" in text


def test_a_report_needs_no_template_and_names_what_is_damaged(home, finished, tmp_path):
    with pytest.raises(ValueError, match="holds no result"):
        write_report(tmp_path)
    shutil.copytree(home / "results" / "grid", tmp_path / "grid")
    write_report(tmp_path)
    assert re.search(r"# grid\n\n\| variant .*\n.*\n\| residual \|", (tmp_path / "README.md").read_text())
    lines = (tmp_path / "grid" / "runs.jsonl").read_text().splitlines()
    (tmp_path / "grid" / "runs.jsonl").write_text("\n".join([lines[0], lines[1][:99], *lines[2:]]))
    with pytest.raises(ValueError, match=r"Line 2 of .*grid/runs\.jsonl is damaged"):
        write_report(tmp_path)


def test_the_committed_report_is_what_the_committed_numbers_give():
    folder = ROOT / "results"
    experiments = load_results(folder)
    assert render(folder, experiments).strip() == (folder / "README.md").read_text().strip()
    for claim in (*CLAIMS, *OPEN, *VISION):
        assert measured(experiments, claim) is not None, claim.says


def test_the_committed_numbers_are_of_the_committed_experiments(tmp_path):
    count = 0
    for name, runs in load_results(ROOT / "results").items():
        grid = load_experiment(ROOT / "configuration" / "experiments" / f"{name}.yaml")
        for variant, by_seed in runs.items():
            for seed in by_seed:
                check_earlier(grid, variant, seed, ROOT / "results", tmp_path)
                count += 1
    assert count > 100


def test_runs_are_kept_one_a_line_in_one_order_whenever_they_end(tmp_path):
    """Two processes that end at the same time, a run that is repeated, and seeds of two digits."""
    results = [fake(variant, seed, [5.0]) for variant in ("shc-4", BASELINE, "dhc-4") for seed in (10, 2)]
    folders = [tmp_path / name for name in ("one", "other")]
    for folder, order in zip(folders, (results, results[::-1]), strict=True):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(partial(save_run, folder), order))
        save_run(folder, results[0])
    one, other = ((folder / "llama-0.3m" / "runs.jsonl").read_text() for folder in folders)
    assert one == other
    names = [(run["variant"], run["seed"]) for run in map(json.loads, one.splitlines())]
    assert names == [(variant, seed) for variant in (BASELINE, "dhc-4", "shc-4") for seed in (2, 10)]
    save_run(folders[0], fake("dhc-4", 2, [4.0]))
    assert find_run(folders[0], "llama-0.3m", "dhc-4", 2)["final"]["held"]["loss"] == 4.0
    assert len((folders[0] / "llama-0.3m" / "runs.jsonl").read_text().splitlines()) == 6


def test_a_run_that_cannot_be_saved_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    """The disk is full, or the process killed, while the file is written."""
    save_run(tmp_path, fake(BASELINE, 0, [5.0]))
    before = (tmp_path / "llama-0.3m" / "runs.jsonl").read_bytes()

    def half(path: Path, text: str, **options: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        save_run(tmp_path, fake("dhc-4", 0, [4.0]))
    assert (tmp_path / "llama-0.3m" / "runs.jsonl").read_bytes() == before


@pytest.mark.parametrize("page", ["evidence", "vision"])
def test_a_page_quotes_the_numbers_of_the_report(page):
    section = (ROOT / "docs" / f"{page}.md").read_text()
    report = (ROOT / "results" / "README.md").read_text()
    quoted = re.findall(r"[−+]?\d\.\d+ ± \d\.\d+", section)  # noqa: RUF001
    assert len(quoted) >= 5
    assert [number for number in quoted if number not in report] == []
