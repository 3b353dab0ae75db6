# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""DiT with hyper-connections: it starts as diffusers' DiT, runs in its pipeline, and trains on images."""

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from contract import scramble
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, default_data_collator

diffusers = pytest.importorskip("diffusers", reason="the extra diffusion is not installed")

from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, DiTTransformer2DModel  # noqa: E402

from modeling_hc.commands import train_diffusion  # noqa: E402
from modeling_hc.configuration_hc import check_spelling  # noqa: E402
from modeling_hc.diffusion import DIT_FIELDS, OWN_FIELDS, HCDiTTransformer2DModel  # noqa: E402
from modeling_hc.training.diffusion import (  # noqa: E402
    Denoiser,
    NoisyImages,
    initialize,
    losses_by_timestep,
)

SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
NOISY = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TIMES, LABELS = torch.tensor([1, 500, 999]), torch.tensor([0, 5, 10])  # 10 is no class


def residual(equal_embedders: bool = False) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(**SIZES).eval()
    scramble(model, 0.2)
    first = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks if equal_embedders else ():
        block.norm1.emb.load_state_dict(first.state_dict())
    return model


def trained(**own: Any) -> HCDiTTransformer2DModel:
    """A model whose coefficients are far from their initial values, so that all streams differ."""
    torch.manual_seed(1)
    model = HCDiTTransformer2DModel(**SIZES | own).eval()
    scramble(model, 0.2)
    return model


def predict(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(NOISY, timestep=TIMES, class_labels=LABELS).sample


# ---- the same function as the residual parent -------------------------------------------------------------------


@pytest.mark.parametrize("equal_embedders", [False, True])
@pytest.mark.parametrize("connection", ["dynamic", "static"])
@pytest.mark.parametrize("num_streams", [1, 2, 4])
def test_a_converted_dit_equals_its_parent_and_converts_back(
    tmp_path: Path, num_streams: int, connection: str, equal_embedders: bool
) -> None:
    parent = residual(equal_embedders)
    parent.save_pretrained(tmp_path)

    model = HCDiTTransformer2DModel.from_pretrained(tmp_path, num_streams=num_streams, connection=connection)

    expected = predict(parent)
    assert expected.abs().max() > 0.1
    assert torch.equal(predict(model), expected)
    assert (model.config.connection, model.config.num_streams) == (connection, num_streams)
    assert model.config.one_embedder == equal_embedders
    back = model.to_residual()
    assert type(back) is DiTTransformer2DModel
    assert all(map(torch.equal, back.state_dict().values(), parent.state_dict().values()))


@pytest.mark.parametrize("connection", ["mhc", "identity", "mhc_lite", "kromhc", "frac"])
def test_the_other_variants_start_as_their_parent(connection: str) -> None:
    parent = residual()
    own = {"connection": connection, "stream_reduction": "mean" if connection == "frac" else "gated"}

    model = HCDiTTransformer2DModel.from_residual(parent, num_streams=4, **own)

    assert (predict(model) - predict(parent)).abs().max() <= 2e-6 * predict(parent).abs().max()


def test_a_dit_that_was_trained_is_not_converted_back() -> None:
    model = HCDiTTransformer2DModel.from_residual(residual(), num_streams=2, connection="static")
    with torch.no_grad():
        model.transformer_blocks[1].mlp_hc.beta_bias[0] = 1.5
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.mlp_hc\.beta_bias was trained"):
        model.to_residual()
    with pytest.raises(ValueError, match=r"stream_reduction='sum' .* load the model with stream_reduction='mean'"):
        HCDiTTransformer2DModel.from_residual(residual(), stream_reduction="sum").to_residual()


def test_fractions_which_are_not_summed_convert_back_whatever_the_reduction_of_streams_is() -> None:
    parent = residual()
    model = HCDiTTransformer2DModel.from_residual(parent, num_streams=2, connection="frac", stream_reduction="sum")

    assert torch.equal(predict(model.to_residual()), predict(parent))


def test_a_conversion_that_would_change_the_function_is_rejected() -> None:
    with pytest.raises(ValueError, match="one_embedder=True"):
        HCDiTTransformer2DModel.from_residual(residual(), one_embedder=True)
    with pytest.raises(TypeError, match="'num_steams'"):
        HCDiTTransformer2DModel.from_residual(residual(), num_steams=2)


def test_hyper_connections_stand_around_the_gated_branches() -> None:
    """Against the equations, written out in fp64."""
    model = trained(connection="static", num_streams=2, one_embedder=True).double()
    block = model.transformer_blocks[1]
    streams, conditioning = torch.randn(3, 16, 2, 16).double(), torch.randn(3, 16).double()

    def layer_norm(x: Tensor, eps: float) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()

    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
        block.norm1.linear(nn.functional.silu(conditioning)).unsqueeze(1).chunk(6, -1)
    )
    expected = streams
    for connection, branch in (
        (block.attn_hc, lambda x: gate * block.attn1(layer_norm(x, 1e-6) * (1 + scale) + shift)),
        (block.mlp_hc, lambda x: mlp_gate * block.ff(layer_norm(x, 1e-5) * (1 + mlp_scale) + mlp_shift)),
    ):
        alpha, beta = connection.alpha_bias, connection.beta_bias
        mixed = torch.einsum("bsnd,nm->bsmd", expected, alpha)
        expected = mixed[:, :, 1:] + beta[:, None] * branch(mixed[:, :, 0])[:, :, None]

    actual = block(streams, timestep=None, class_labels=conditioning)

    assert (actual - expected).abs().max() < 1e-12 * expected.abs().max()
    assert gate.abs().mean() > 0.1 and (expected[:, :, 0] - expected[:, :, 1]).abs().mean() > 0.1


# ---- sizes ------------------------------------------------------------------------------------------------------


def test_parameters_of_dit_xl_2_are_those_of_the_papers() -> None:
    def count(**own: Any) -> int:
        with torch.device("meta"):
            return HCDiTTransformer2DModel(out_channels=8, **own).num_parameters()

    width, blocks = 1152, 56
    with torch.device("meta"):
        diffusers_own = DiTTransformer2DModel(out_channels=8).num_parameters()
    # timestep 256 -> D -> D, labels (1000 + 1) x D
    embedder = (256 + 1) * width + (width + 1) * width + 1001 * width
    assert count(connection=None, one_embedder=False) == diffusers_own
    parent = count(connection=None)
    assert parent == diffusers_own - 27 * embedder == 674_834_720
    assert round((parent + 256 * width) / 1e6) == 675  # with its fixed positions; Table 10 and the DiT paper
    assert count(connection="static", num_streams=2) == parent + 448
    for n in (2, 4):
        dynamic = (n + 1) * width + width + 2 + n * (n + 1) + n
        assert count(connection="dynamic", num_streams=n) == parent + blocks * dynamic
    assert count(connection="dynamic", num_streams=2) == parent + 258_608


# ---- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_embedder", [True, False])
def test_a_label_is_dropped_for_the_whole_network_or_not_at_all(one_embedder: bool) -> None:
    model = trained(one_embedder=one_embedder, num_streams=2, class_dropout_prob=0.4, dropout=0.0)
    noisy, times, labels = NOISY[:1].repeat(400, 1, 1, 1), TIMES[:1].repeat(400), LABELS[1:2].repeat(400)

    with torch.no_grad():
        kept, null = (model(noisy[:1], times[:1], y.reshape(1)).sample for y in (labels[0], torch.tensor(10)))
        model.train()
        torch.manual_seed(0)
        drawn = model(noisy, times, labels).sample
    is_kept = (drawn - kept).abs().amax((1, 2, 3)) < 1e-4
    is_null = (drawn - null).abs().amax((1, 2, 3)) < 1e-4

    assert (kept - null).abs().max() > 1e-2
    assert torch.equal(is_kept, ~is_null)  # nothing in between: no block saw another label than the others
    assert 0.32 < is_null.float().mean() < 0.48
    model.eval()
    assert torch.equal(model(noisy, times, labels).sample, model(noisy, times, labels).sample)


def test_the_pipelines_label_for_no_class_is_ours() -> None:
    model = trained()
    null, given = (model(NOISY, TIMES, torch.full((3,), label)).sample for label in (10, 1000))
    assert torch.equal(null, given)
    with pytest.raises(IndexError):
        model(NOISY, TIMES, torch.full((3,), 11))


# ---- diffusers' tools -------------------------------------------------------------------------------------------


def test_a_saved_pipeline_draws_the_same_images_in_another_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,), norm_num_groups=4, sample_size=8).eval()
    pipeline = DiTPipeline(transformer=trained(num_streams=2), vae=vae, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline([3, 7], 2.0, torch.manual_seed(0), num_inference_steps=3, output_type="np").images
    pipeline.save_pretrained(tmp_path)
    code = f"""
import modeling_hc.diffusion, torch
from diffusers import DiTPipeline
pipeline = DiTPipeline.from_pretrained({str(tmp_path)!r})
pipeline.set_progress_bar_config(disable=True)
images = pipeline([3, 7], 2.0, torch.manual_seed(0), num_inference_steps=3, output_type="np").images
torch.save(torch.from_numpy(images), {str(tmp_path / "images.pt")!r})
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    # To rounding: another process may have another number of threads.
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_what_is_no_residual_dit_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"Linear is no DiTTransformer2DModel"):
        HCDiTTransformer2DModel.from_residual(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"has hyper-connections already"):
        HCDiTTransformer2DModel.from_residual(trained(num_streams=2))


def test_a_model_loaded_in_bf16_keeps_its_hyper_connections_in_fp32(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    model = HCDiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "_hc." in name else torch.bfloat16), name


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = trained(num_streams=2, class_dropout_prob=0.0).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(NOISY, TIMES, LABELS).sample.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    assert all(gradient.any() for gradient in expected)
    model.enable_gradient_checkpointing()
    assert all(map(torch.equal, gradients(), expected))


def test_wrong_fields_are_named() -> None:
    for own, message in (
        ({"num_streams": 0}, "num_streams=0"),
        ({"connection": "mch"}, "connection"),
        ({"connection": "mhc", "num_streams": 1}, "num_streams=1 of HCDiTConfig must be 2 or more"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob=1.5"),
    ):
        with pytest.raises(Exception, match=message):
            HCDiTTransformer2DModel(**SIZES | own)


def test_without_diffusers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "modeling_hc.diffusion")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'modeling-hc\[diffusion\]'"):
        importlib.import_module("modeling_hc.diffusion")


# ---- training ---------------------------------------------------------------------------------------------------

COLOURS = {"blue": (20, 30, 220), "green": (20, 210, 40), "red": (220, 20, 30)}
TINY = (
    "num_attention_heads=2,attention_head_dim=16,in_channels=3,num_layers=2,sample_size=8,patch_size=2,num_streams=2"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + random.normal(0, 20, (10, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, images: Path, output: Path, *flags: str) -> int:
    data = [f"--train_dir={images / 'train'}", f"--validation_dir={images / 'val'}", f"--output_dir={output}"]
    common = ["--use_cpu=true", "--report_to=none", "--disable_tqdm=true", "--dataloader_pin_memory=false"]
    common += ["--per_device_train_batch_size=8", "--save_strategy=no", "--num_inference_steps=5"]
    if not any(flag.startswith("--config_overrides") for flag in flags):
        common.append(f"--config_overrides={TINY}")
    monkeypatch.setattr(sys, "argv", ["modeling-hc train-diffusion", *data, *common, *flags])
    return train_diffusion.run()


def test_a_run_leaves_a_pipeline_with_the_loss_that_it_tells(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = ["--max_steps=80", "--learning_rate=1e-2", "--ema_decay=0.9", "--warmup_steps=10"]

    assert run(monkeypatch, images, folder, *flags) == 0

    record = json.loads((folder / "run.json").read_text())
    results = record["results"]
    assert record["data"] == {"train": 24, "validation": 12, "classes": 3}
    assert results["eval_loss"] < 0.2  # of a model that predicts nothing: 1
    parts = [results[f"eval_loss_t{i * 200}_{i * 200 + 199}"] for i in range(5)]
    assert np.average(parts, weights=[3, 3, 2, 2, 2]) == pytest.approx(results["eval_loss"], rel=1e-4)
    with Image.open(folder / "samples.png") as panels:
        assert panels.size == (8 * 8 + 4 + 8 * 8, 3 * 8)  # without and with guidance
    pipeline = DiTPipeline.from_pretrained(folder)
    assert pipeline.get_label_ids(sorted(COLOURS)) == [0, 1, 2]
    rows = datasets.load_dataset("imagefolder", data_dir=str(images / "val"), split="train")
    held_out = default_data_collator(list(NoisyImages(rows, 8, 3, num_timesteps=1000)))
    with torch.no_grad():
        losses = Denoiser(pipeline.transformer, DDPMScheduler(), 0.9).eval()(**held_out)
    assert losses["loss"].item() == pytest.approx(results["eval_loss"], rel=1e-4)


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--max_steps=5", "--save_strategy=steps", "--save_steps=4", "--eval_strategy=no"]
    assert run(monkeypatch, images, tmp_path / "run", *flags) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-5")

    assert run(monkeypatch, images, tmp_path / "again", *flags, "--resume_from_checkpoint=true") == 0

    for file in ("transformer/diffusion_pytorch_model.safetensors", "checkpoint-5/model.safetensors"):
        expected, actual = load_file(tmp_path / "run" / file), load_file(tmp_path / "again" / file)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    before = load_file(tmp_path / "again" / "checkpoint-4" / "model.safetensors")
    assert not all(torch.equal(actual[name], before[name]) for name in before)
    with pytest.raises(SystemExit, match=r"ema_decay=0\.9999 and cannot be resumed with ema_decay=0\.5"):
        run(monkeypatch, images, tmp_path / "again", *flags, "--ema_decay=0.5", "--resume_from_checkpoint=true")


def test_a_run_whose_loss_is_not_finite_stops_before_the_step(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"Step 2 is not finite\. Loss: inf"):
        run(monkeypatch, images, tmp_path / "run", "--max_steps=3", "--learning_rate=1e30")


def test_training_goes_on_from_a_residual_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "sample_size": 8}
    DiTTransformer2DModel(**sizes, in_channels=3, num_embeds_ada_norm=3).save_pretrained(tmp_path / "dit")
    flags = [f"--model_name_or_path={tmp_path / 'dit'}", "--max_steps=1", "--learning_rate=0"]
    kind = "activation" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient"
    flags.append(f"--{kind}_checkpointing=true")

    assert run(monkeypatch, images, tmp_path / "run", *flags, "--config_overrides=connection=static") == 0

    model = HCDiTTransformer2DModel.from_pretrained(tmp_path / "run" / "transformer")
    before = HCDiTTransformer2DModel.from_pretrained(tmp_path / "dit", connection="static")
    assert model.config.connection == "static"
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_stream", "num_streams"),
        ("class_dropout", "class_dropout_prob"),
        ("one_embeder", "one_embedder"),
        ("num_layer", "num_layers"),
    ],
)
def test_a_misspelt_field_is_rejected_by_from_pretrained_and_no_option_of_diffusers_is(
    name: str, meant: str, tmp_path: Path
) -> None:
    for folder, model in {"residual": residual(), "connected": trained()}.items():
        model.save_pretrained(tmp_path / folder)
        with pytest.raises(ValueError, match=f"HCDiTTransformer2DModel has no field '{name}'; did you mean '{meant}'"):
            HCDiTTransformer2DModel.from_pretrained(tmp_path / folder, **{name: 1})
    options = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(diffusers.ModelMixin.from_pretrained))
    assert {"torch_dtype", "device_map"} <= set(options)
    check_spelling(options, "", others=[*DIT_FIELDS, *OWN_FIELDS])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model_name_or_path=.", "model_name_or_path=. cannot be read. (Error no file named config.json found"),
        ("--config_overrides=num_layer=2", "'num_layer' in config_overrides is not a field of a DiT; did you mean"),
        ("--config_overrides=num_layers=two", "config_overrides=num_layers=two"),
        ("--config_overrides=num_streams=0", "num_streams=0"),
        (f"--config_overrides={TINY},out_channels=6", "out_channels=6"),
        (f"--config_overrides={TINY},num_embeds_ada_norm=7", "num_embeds_ada_norm=7 must be 3"),
        (f"--config_overrides={TINY},patch_size=3", "sample_size=8 must be a multiple of patch_size=3"),
        ("--ema_decay=1.5", "ema_decay=1.5"),
        ("--num_inference_steps=2000", "num_inference_steps=2000"),
    ],
)
def test_a_wrong_field_ends_in_a_message_that_names_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, images, tmp_path / "run", flag)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_loss_is_the_error_in_the_noise_of_ddpm() -> None:
    model = trained(num_embeds_ada_norm=10, num_streams=2)
    denoiser = Denoiser(model, DDPMScheduler(), 0.9).eval()
    noise = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(5))
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[TIMES].view(3, 1, 1, 1)
    noisy = (kept.sqrt() * NOISY + (1 - kept).sqrt() * noise).float()
    expected = (model(noisy, TIMES, LABELS).sample - noise).square().mean((1, 2, 3))

    found = denoiser(NOISY, LABELS, TIMES, noise)

    assert (found["losses"][:, 0] - expected).abs().max() < 1e-5 * expected.max()
    assert torch.equal(found["losses"][:, 1], TIMES.float())
    assert (found["loss"] - expected.mean()).abs() < 1e-5 * expected.mean()


def test_the_averaged_weights_follow_the_weights() -> None:
    denoiser = Denoiser(HCDiTTransformer2DModel(**SIZES), DDPMScheduler(), ema_decay=0.4)
    weight, averaged = denoiser.transformer.proj_out_2.bias, denoiser.averaged.module.proj_out_2.bias
    expected = None
    for step, decay in enumerate((0.0, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 0.4)):
        with torch.no_grad():
            weight.fill_(step + 1.0)
        denoiser.averaged.update_parameters(denoiser.transformer)
        expected = step + 1.0 if expected is None else decay * expected + (1 - decay) * (step + 1.0)
        assert averaged[0].item() == pytest.approx(expected)
    assert not averaged.requires_grad


def test_the_recipe_is_of_the_model_that_it_says() -> None:
    arguments, *_ = train_diffusion.read(["fashion-mnist", "--use_cpu=true"])
    model = train_diffusion.make_model(arguments, num_classes=10)
    assert model.num_parameters() == pytest.approx(0.33e6, rel=0.01)
    assert (model.config.connection, model.config.num_streams, model.config.sample_size) == ("static", 2, 16)


def test_a_fresh_dit_has_closed_gates_and_predicts_nothing() -> None:
    model = HCDiTTransformer2DModel(**SIZES, num_streams=2)
    initialize(model)
    assert not predict(model.eval()).any()
    gates = model.transformer_blocks[1].norm1.linear(torch.randn(2, 16))
    assert not gates.any()
    assert model.transformer_blocks[0].attn1.to_q.weight.std() > 0.1


def test_held_out_images_keep_their_noise_and_fall_into_equal_ranges_of_timesteps() -> None:
    picture = Image.fromarray(np.arange(80, dtype=np.uint8).reshape(10, 8))
    rows = Dataset.from_dict({"image": [picture] * 20, "label": [0] * 20}).cast_column("image", datasets.Image())
    held_out = NoisyImages(rows, 8, 1, num_timesteps=50)
    first, again = held_out[7], held_out[7]
    assert torch.equal(first["noise"], again["noise"]) and not torch.equal(first["noise"], held_out[8]["noise"])
    assert first["pixel_values"].shape == first["noise"].shape == (1, 8, 8)
    middle = torch.arange(8, 72).view(8, 8)  # ten rows are cut to eight
    assert (first["pixel_values"][0] - (middle / 127.5 - 1)).abs().max() < 1e-6
    assert set(NoisyImages(rows, 8, 1)[0]) == {"pixel_values", "labels"}
    times = np.array([held_out[i]["timesteps"] for i in range(20)])
    assert np.bincount(times // 10).tolist() == [4] * 5

    losses = np.arange(20.0)
    found = losses_by_timestep(EvalPrediction(np.stack([losses, times], 1), None), 50)

    assert list(found) == [f"loss_t{low}_{low + 9}" for low in range(0, 50, 10)]
    assert found["loss_t10_19"] == losses[(times >= 10) & (times < 20)].mean()
