# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""DiT with hyper-connections: it starts as diffusers' DiT, runs in its pipeline, and trains on images."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import scramble
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers", reason="the extra diffusion is not installed")

from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel  # noqa: E402

from modeling_hc.diffusion import HCDiTTransformer2DModel  # noqa: E402

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


@pytest.mark.parametrize("own", [{"connection": name} for name in ("mhc", "identity", "mhc_lite", "kromhc")])
def test_the_bounded_variants_start_as_their_parent(own: dict[str, str]) -> None:
    parent = residual()

    model = HCDiTTransformer2DModel.from_residual(parent, num_streams=4, stream_reduction="gated", **own)

    assert (predict(model) - predict(parent)).abs().max() <= 2e-6 * predict(parent).abs().max()


def test_a_dit_that_was_trained_is_not_converted_back() -> None:
    model = HCDiTTransformer2DModel.from_residual(residual(), num_streams=2, connection="static")
    with torch.no_grad():
        model.transformer_blocks[1].mlp_hc.beta_bias[0] = 1.5
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.mlp_hc\.beta_bias was trained"):
        model.to_residual()
    with pytest.raises(ValueError, match="stream_reduction='sum'"):
        HCDiTTransformer2DModel.from_residual(residual(), stream_reduction="sum").to_residual()


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
    assert torch.equal(torch.load(tmp_path / "images.pt"), torch.from_numpy(expected))
    assert expected.std() > 0.01


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
