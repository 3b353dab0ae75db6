# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""`modeling-hc analyze --images`: a ViT with an image and its patches in the place of a text and its tokens."""

import base64
import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import browser
import numpy as np
import pytest
import test_modeling_hc_vit as vit
import torch
from contract import needs_auto_image_processor
from matplotlib import cbook
from PIL import Image
from test_analyze import ends_in_one_paragraph
from torch import Tensor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_hc.analysis import measure, record, unfolding_error
from modeling_hc.commands import analyze
from modeling_hc.health import health

pytestmark = needs_auto_image_processor
PHOTO = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
TOKENS = 1 + 3 * 3  # the class token, and patches of 4 in images of 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a dynamic, a static and a residual ViT, and parts of a photo in a folder for each class."""
    folder = tmp_path_factory.mktemp("images")
    models = {"dynamic": vit.trained(), "static": vit.trained(connection="static"), "residual": vit.residual()}
    models |= {
        "shallow": vit.residual(num_hidden_layers=1),
        "otherwise": vit.residual(),
        "grey": vit.residual(num_channels=1),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        mean = [0.1] * 3 if name == "otherwise" else [0.5] * 3
        ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=mean).save_pretrained(folder / name)
    with Image.open(PHOTO) as photo:
        for i in range(4):
            (folder / "photos" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
            part = photo.crop((60 * i, 80 * i, 60 * i + 300, 80 * i + 300))
            part.save(folder / "photos" / f"class{i % 2}" / f"{i}.png")
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the command line in this process and in the folder."""
    monkeypatch.chdir(folder)

    def command(name: str, output: str, *arguments: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["analyze.py", name, "--output", output, *arguments])
        analyze.main()
        return folder / output

    return command


def page_data(page: Path) -> dict:
    return json.loads(re.search(r"const data = (.*);", page.read_text())[1])


def pixels_of(file: Path) -> Tensor:
    """By hand what ViT's image processor makes of an image: bilinear, to 12 x 12, from -1 to 1."""
    with Image.open(file) as image:
        small = image.convert("RGB").resize((12, 12), Image.Resampling.BILINEAR)
    return torch.tensor(np.asarray(small)).movedim(-1, 0)[None].float() / 255 * 2 - 1


def test_the_page_shows_the_first_image_and_what_each_of_its_patches_does(folder: Path, run: Callable) -> None:
    out = run("dynamic", "out", "--images", "photos", "--parent", "residual")

    data = page_data(out / "index.html")
    first = pixels_of(folder / "photos/class0/0.png")
    image = Image.open(io.BytesIO(base64.b64decode(data["beginning"]["image"].partition("base64,")[2])))
    shown = torch.tensor(np.asarray(image)).movedim(-1, 0).float()
    assert image.size == (12, 12)
    assert (shown - 255 * (first[0] - first.min()) / (first.max() - first.min())).abs().max() <= 1
    assert data["beginning"]["tokens"][:5] == ["class token", "patch 1, 1", "patch 1, 2", "patch 1, 3", "patch 2, 1"]
    assert len(data["beginning"]["tokens"]) == len(data["beginning"]["matrices"]) == TOKENS
    assert data["beginning"]["columns"] == 3 and data["ablation"] is None
    matrix = record(vit.trained(), first).unfold()[0][0]
    for token in (0, 5):
        for k in (1, 7):
            weights = data["beginning"]["matrices"][token][1][k - 1]
            assert weights == pytest.approx(matrix[token, k, :k].tolist(), rel=1e-2)
    reading = (out / "reading.md").read_text()
    assert "Images: 4 of 4 in photos, 40 tokens" in reading and "Ablate" not in reading


def test_the_measured_numbers_are_those_of_the_model_on_all_images(folder: Path, run: Callable) -> None:
    out = run("static", "numbers", "--images", "photos/class0/0.png", "photos/class1")

    files = [folder / "photos" / name for name in ("class0/0.png", "class1/1.png", "class1/3.png")]
    inputs: list[list[Tensor]] = [[] for _ in range(6)]
    model = vit.trained(connection="static")
    for i, connection in enumerate(c for layer in model.vit.layers for c in (layer.attn_hc, layer.mlp_hc)):
        connection.register_forward_hook(lambda module, args, output, i=i: inputs[i].append(output[1]))
    with torch.no_grad():
        model(pixel_values=torch.cat([pixels_of(file) for file in files]))
    cosine = torch.cosine_similarity(inputs[2][0], inputs[3][0], dim=-1)
    row = list(csv.DictReader((out / "layers.csv").read_text().splitlines()))[4]
    assert cosine.shape == (3, TOKENS) and row["name"] == "4 MLP"
    assert float(row["similarity"]) == pytest.approx(cosine.quantile(0.5, interpolation="lower").item(), abs=5e-4)
    assert 'id="slider"' not in (out / "index.html").read_text()  # all tokens have the same coefficients
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {"connections", "streams", "stream-connections"} <= names and "ablation" not in names


@pytest.mark.parametrize("model", [vit.trained(), vit.trained(connection="static"), vit.residual()])
def test_a_vits_record_adds_up_to_what_its_blocks_read_and_to_its_logits(model) -> None:
    model = model.double()
    with torch.no_grad():
        logits = model(pixel_values=vit.PIXELS.double()).logits
        embedded = model.vit.embeddings(vit.PIXELS.double())

    recording = record(model, vit.PIXELS.double())

    assert unfolding_error(recording) < 1e-12
    torch.testing.assert_close(recording.outputs[0], embedded)
    last = torch.nn.functional.layer_norm(
        recording.final, [32], model.vit.layernorm.weight, model.vit.layernorm.bias, model.config.layer_norm_eps
    )
    torch.testing.assert_close(model.classifier(last[:, 0]), logits)
    assert measure(model, [vit.PIXELS.double()]).tokens == 2 * TOKENS
    assert health(model, vit.PIXELS.double())["input_cosine"] < 1


def test_few_tokens_are_of_images_from_all_over_the_folders(run: Callable) -> None:
    out = run("static", "few", "--images", "photos", "--tokens", "25")

    assert "Images: 2 of 4 in photos, 20 tokens" in (out / "reading.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dynamic", "o", "--images", "photos", "--text", "a.txt"], "--text a.txt is for language models"),
        (["dynamic", "o", "--images", "photos", "--window", "9"], "--window 9 is for language models"),
        (["dynamic", "o", "--images", "photos", "--tokens", "0"], "--tokens 0 is too few"),
        (["dynamic", "o", "--images", "nowhere"], "--images nowhere is not there"),
        (["dynamic", "o", "--images", "empty"], "--images empty: there is no image"),
        (["dynamic", "o", "--images", "broken.png"], "--images broken.png is no image that can be read"),
        (["dynamic", "o", "--images", "photos", "--parent", "shallow"], "shallow has 1 layers"),
        (["dynamic", "o", "--images", "photos", "--parent", "otherwise"], "otherwise has another image processor"),
        (["grey", "o", "--images", "photos"], "grey has num_channels=1"),
        (["dynamic", "o"], "model_type='hc_vit' is no causal language model. It classifies images: `modeling-hc"),
        (["dynamic", "photos"], "shows it with --images"),  # before it says that the folder for the output is there
    ],
)
def test_bad_input_ends_in_one_paragraph_and_leaves_nothing(
    folder: Path, run: Callable, arguments: list[str], reason: str
) -> None:
    ends_in_one_paragraph(folder, run, arguments, reason)


@pytest.mark.skipif(browser.EXECUTABLE is None, reason="no Chromium is installed")
def test_a_pressed_patch_is_marked_on_the_image_and_shows_its_matrix(run: Callable, tmp_path: Path) -> None:
    out = run("dynamic", "pressed", "--images", "photos")
    chromium = browser.Browser(tmp_path)
    try:
        chromium.open(out / "index.html")
        colors = "[...document.querySelectorAll('svg.matrix .cell')].map(cell => cell.style.fill).join()"
        mean = chromium.evaluate(colors)
        assert chromium.evaluate("document.querySelectorAll('#image button').length") == TOKENS - 1
        box = "(({left, top, width}) => [left, top, width])({}.getBoundingClientRect())"
        image = chromium.evaluate(box.replace("{}", "document.querySelector('#image img')", 1))
        patch = chromium.evaluate(box.replace("{}", "document.querySelectorAll('#image button')[5]", 1))
        assert patch == pytest.approx([image[0] + image[2] * 2 / 3, image[1] + image[2] / 3, image[2] / 3], abs=1)

        chromium.evaluate("document.querySelectorAll('#image button')[5].click()")

        assert chromium.evaluate("document.getElementById('at').textContent") == "7: patch 2, 3"
        assert chromium.evaluate("document.querySelector('#image [aria-pressed=true]').title").startswith("patch 2, 3")
        assert chromium.evaluate(colors) != mean and not chromium.errors
    finally:
        chromium.close()
