# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""`modeling-hc train-images`: a tiny ViT learns the colours of generated images, and what a run leaves is right."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract import needs_auto_image_processor
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_hc import HCViTForImageClassification
from modeling_hc.commands import train, train_images
from modeling_hc.training.arguments import parse
from modeling_hc.training.images import Collator, Images, TellEpoch, accuracies, random_crop, soft_cross_entropy

COLOURS = {"blue": (20, 30, 220), "green": (20, 210, 40), "red": (220, 20, 30)}
TINY = "hidden_size=32,intermediate_size=48,num_hidden_layers=2,num_attention_heads=4,image_size=12,patch_size=4"
COMMON = [
    *("--use_cpu=true", "--report_to=none", "--disable_tqdm=true", "--dataloader_pin_memory=false"),
    *("--logging_steps=1", "--bf16=false", "--dataloader_num_workers=0", "--save_strategy=no"),
]


def draw(folder: Path, per_class: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.clip(np.array(colour) + random.normal(0, 20, (16, 14, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    return draw(folder / "train", 8, seed=0), draw(folder / "val", 4, seed=1)


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["modeling-hc train-images", *map(str, flags)])
    return train_images.run()


def on(images: tuple[Path, Path], output: Path, *flags: str) -> list[str]:
    data = [f"--train_dir={images[0]}", f"--validation_dir={images[1]}", f"--output_dir={output}"]
    model = [] if any(flag.startswith("--model") for flag in flags) else [f"--config_overrides={TINY}"]
    return [*data, *COMMON, *model, "--per_device_train_batch_size=8", "--per_device_eval_batch_size=5", *flags]


def test_the_papers_recipe_trains_a_tiny_vit_that_a_pipeline_then_uses(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = ["--gradient_accumulation_steps=1", "--warmup_steps=5", "--num_train_epochs=15", "--eval_strategy=no"]

    assert run(monkeypatch, "paper-vit", *on(images, folder, *flags)) == 0

    record = json.loads((folder / "run.json").read_text())
    assert record["data"] == {"train": 24, "validation": 12, "classes": 3}
    assert record["images_seen"] == 15 * 24 and record["steps"] == 45
    assert record["configuration"]["mixup"] == 0.2
    assert record["results"]["eval_accuracy"] > 0.9
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is HCViTForImageClassification
    assert (model.config.connection, model.config.num_streams, model.config.problem_type) == ("static", 2, None)
    assert model.config.id2label == dict(enumerate(sorted(COLOURS)))
    assert model.vit.layers[0].attn_hc.alpha_bias.frac().any()  # the connections learned, too
    card = (folder / "README.md").read_text()
    assert "24 images of 3 classes, 12 held out" in card and "Held-out accuracy" in card
    assert (folder / "curves.png").stat().st_size > 5000 and (folder / "log_history.json").exists()

    files = sorted(images[1].glob("*/*.png"))
    found = pipeline("image-classification", str(folder))([str(file) for file in files], top_k=1)
    right = [top[0]["label"] == file.parent.name for top, file in zip(found, files, strict=True)]
    assert np.mean(right) == record["results"]["eval_accuracy"]


def test_the_recipe_for_fashion_mnist_learns_handwritten_digits_and_logs_the_health_of_the_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real images in the layout of docs/vision.md: zeros and ones of scikit-learn's digits."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    chosen = np.flatnonzero(digits.target < 2)
    pictures = [Image.fromarray((digits.images[i] * 15).astype(np.uint8)) for i in chosen]
    features = Features(image=ImageFeature(), label=ClassLabel(names=["zero", "one"]))
    for split, part in {"train": slice(0, 256), "validation": slice(256, None)}.items():
        rows = Dataset.from_dict({"image": pictures[part], "label": digits.target[chosen][part]}, features)
        rows.to_parquet(tmp_path / "digits" / f"{split}.parquet")
    sizes = TINY.replace("image_size=12,patch_size=4", "image_size=8,patch_size=2")
    places = [f"--dataset_name={tmp_path / 'digits'}", f"--output_dir={tmp_path / 'run'}"]

    flags = [f"--config_overrides={sizes}", "--max_steps=100", "--warmup_steps=10"]

    assert run(monkeypatch, "fashion-mnist", *places, *COMMON, *flags) == 0

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"] == {"train": 256, "validation": len(chosen) - 256, "classes": 2}
    assert record["results"]["eval_accuracy"] > 0.8
    logged = json.loads((tmp_path / "run" / "log_history.json").read_text())
    gains = [entry["health_forward_gain"] for entry in logged if "health_forward_gain" in entry]
    assert len(gains) >= 100 and gains[0] < gains[-1]


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--config=vit-base-dhc2", "--mixup=0.5", "--max_steps=5", "--eval_strategy=no", "--learning_rate=1e-2"]
    flags += ["--save_strategy=steps", "--save_steps=4"]  # 3 steps an epoch
    assert run(monkeypatch, *on(images, tmp_path / "run", *flags)) == 0
    expected = load_file(tmp_path / "run" / "model.safetensors")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-5")

    with caplog.at_level("WARNING"):
        assert run(monkeypatch, *on(images, tmp_path / "again", *flags, "--resume_from_checkpoint=true")) == 0

    assert "missing keys" not in caplog.text and "unexpected keys" not in caplog.text
    actual = load_file(tmp_path / "again" / "model.safetensors")
    first = load_file(tmp_path / "again" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not all(torch.equal(actual[name], first[name]) for name in expected)
    assert "vit.encoder.layer.0.attn_hc.alpha_bias" in first  # not the names of the parameters: upstream loads none
    with pytest.raises(SystemExit, match=r"mixup=0\.5 and cannot be resumed with mixup=0\.1"):
        run(monkeypatch, *on(images, tmp_path / "again", *flags, "--mixup=0.1", "--resume_from_checkpoint=true"))


@needs_auto_image_processor
def test_a_residual_checkpoint_is_given_hyper_connections_and_another_head(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    source = ViTForImageClassification(ViTConfig(**sizes, image_size=12, patch_size=4, num_labels=7))
    source.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "vit")
    flags = [f"--model_name_or_path={tmp_path / 'vit'}", "--hyper_connect=true", "--max_steps=1", "--warmup_steps=1"]
    flags += ["--eval_strategy=no", "--max_eval_samples=3"]
    with pytest.raises(SystemExit, match=r"lacks classifier\.bias .* ignore_mismatched_sizes=true"):
        run(monkeypatch, *on(images, tmp_path / "run", *flags))

    assert run(monkeypatch, *on(images, tmp_path / "run", *flags, "--ignore_mismatched_sizes=true")) == 0

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert type(model) is HCViTForImageClassification and model.config.stream_reduction == "mean"
    query = "vit.layers.0.attention.q_proj.weight"  # the first of the warmup's learning rates is 0
    assert torch.equal(model.state_dict()[query], source.state_dict()[query])
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.1, 0.2, 0.3] and processor["size"] == {"height": 12, "width": 12}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["validation"] == 3


def test_parquet_with_other_column_names_and_names_for_labels_is_read(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_dataset("imagefolder", data_dir=str(images[0]), split="train")
    named = rows.features["label"].names
    rows = rows.map(lambda row: {"colour": named[row["label"]]}).rename_columns({"image": "picture"})
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    flags = [f"--dataset_name={tmp_path / 'data'}", "--image_column_name=picture", "--label_column_name=colour"]
    flags += ["--config=vit-base", f"--config_overrides={TINY}", "--train_val_split=0.25", "--max_steps=1"]

    assert run(monkeypatch, *flags, *COMMON, f"--output_dir={tmp_path / 'run'}") == 0

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"] == {"train": 18, "validation": 6, "classes": 3}
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert type(model) is ViTForImageClassification
    assert model.config.label2id == {"blue": 0, "green": 1, "red": 2}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_dir=nowhere"], ["train_dir=nowhere is no folder"]),
        (["--validation_dir=nowhere"], ["validation_dir=nowhere is no folder"]),
        (["--config_overrides=image_size=18,patch_size=4"], ["image_size=18", "a multiple of patch_size=4"]),
        (["--dataset_name=x"], ["dataset_name=x", "train_dir"]),
        (["--label_column_name=klass"], ["label_column_name='klass'", "'label'"]),
        (["--mixup=-1"], ["mixup=-1.0"]),
        (["--config=hc-llama-demo-dhc4", "--config_overrides="], ["hc_llama", "vit-base-shc2"]),
        (["--config_overrides=num_channels=1"], ["num_channels=1", "RGB"]),
        (["--config_overrides=patch_size=500"], ["patch_size=500"]),
        (["--max_train_samples=0"], ["max_train_samples"]),
        (["--lora_r=4"], ["lora_r"]),
    ],
)
def test_bad_input_ends_in_one_sentence_that_names_the_field(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *on(images, tmp_path / "run", "--config=vit-base-shc2"), *flags)

    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves the file open
def test_an_image_that_cannot_be_read_is_named_in_a_worker_too_and_no_folder_is_left(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, damage in {"truncated": lambda data: data[:200], "text": lambda data: b"no image"}.items():
        shutil.copytree(images[0], tmp_path / name)
        file = tmp_path / name / "red" / "3.png"
        file.write_bytes(damage(file.read_bytes()))
        flags = ["--config=vit-base-shc2", f"--train_dir={tmp_path / name}", "--max_steps=3"]
        flags += [f"--dataloader_num_workers={int(name == 'text')}", "--eval_strategy=no"]

        with pytest.raises(SystemExit) as error:
            run(monkeypatch, *on(images, tmp_path / "run", *flags))

        assert re.fullmatch(
            rf"modeling-hc train-images: The image {file} cannot be read: .* Replace it, or take it away\. "
            r"Nothing was written\.",
            str(error.value),
        )
        assert not (tmp_path / "run").exists()


def test_a_class_of_held_out_images_alone_is_rejected(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images[1], tmp_path / "val")
    shutil.copytree(images[1] / "red", tmp_path / "val" / "yellow")

    with pytest.raises(SystemExit, match="held-out images of the class 'yellow', and no training image of it"):
        run(monkeypatch, *on((images[0], tmp_path / "val"), tmp_path / "run", "--config=vit-base-shc2"))
    assert not (tmp_path / "run").exists()


def test_held_out_images_without_a_label_are_rejected(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, folder in zip(("train", "validation"), images, strict=True):
        rows = load_dataset("imagefolder", data_dir=str(folder), split="train")
        if split == "validation":
            rows = rows.map(lambda row: {"label": -1})
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    flags = ["--config=vit-base-shc2", f"--dataset_name={tmp_path / 'data'}", f"--output_dir={tmp_path / 'run'}"]

    with pytest.raises(SystemExit, match=r"\(validation\) has images without a label"):
        run(monkeypatch, *flags, *COMMON, f"--config_overrides={TINY}")


def test_a_checkpoint_that_is_nowhere_is_named(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("./nowhere", "vit"):
        with pytest.raises(SystemExit, match=f"model_name_or_path={name} cannot be read: there is no such folder"):
            run(monkeypatch, *on(images, tmp_path / "run", f"--model_name_or_path={name}"))


def test_folders_that_are_given_win_over_the_data_of_a_recipe(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--max_steps=1", "--eval_strategy=no"]

    assert run(monkeypatch, "fashion-mnist", *on(images, tmp_path / "run", *flags)) == 0

    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["train"] == 24
    for flag, given in {"--train_files=a.txt": (None, ["a.txt"]), "--dataset_name=b": ("b", None)}.items():
        data = parse(["60m", flag, "--use_cpu=true"])[1]  # the recipe's is on the Hub
        assert (data.dataset_name, data.train_files) == given


def test_the_text_trainer_sends_a_vit_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["modeling-hc train", "--config=vit-base", f"--output_dir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit, match=r"model_type=vit.*train-images"):
        train.run()


# ---- the parts ----------------------------------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_however_a_step_is_divided_into_batches() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    soft = torch.rand(6, 4).softmax(-1)
    log_p = logits.double().log_softmax(-1)
    for target, expected in ((labels, -log_p[range(6), labels].mean()), (soft, -(soft * log_p).sum(-1).mean())):
        whole = soft_cross_entropy({"logits": logits}, target)
        items = target.numel()  # as the Trainer counts
        parts = [soft_cross_entropy({"logits": logits[i]}, target[i], items) for i in (slice(0, 2), slice(2, 6))]
        assert whole.item() == pytest.approx(expected.item(), rel=1e-5)
        assert sum(parts).item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_mixes_images_and_labels_by_one_share_in_training_only() -> None:
    rows = [{"pixel_values": torch.full((3, 2, 2), float(i)), "labels": i, "seed": 7} for i in range(4)]
    batch = Collator(4, 0.5)(rows)

    classes = torch.arange(4.0)
    assert batch["labels"].shape == (4, 4) and batch["labels"].dtype == torch.float32
    assert torch.allclose(batch["labels"].sum(-1), torch.ones(4))
    assert torch.allclose(batch["labels"] @ classes, batch["pixel_values"][:, 0, 0, 0])  # an image is its label here
    assert torch.equal(batch["labels"], Collator(4, 0.5)(rows)["labels"])
    assert (batch["labels"].max(-1).values < 1).any()
    held_out = [{k: v for k, v in row.items() if k != "seed"} for row in rows]
    for plain in (Collator(4, 0.5)(held_out), Collator(4, 0.0)(rows)):
        assert torch.equal(plain["labels"], torch.arange(4))


def test_accuracy_and_top_5_are_those_of_counting() -> None:
    best = np.array([[1, 2, 3, 4, 5], [0, 6, 7, 8, 9], [2, 1, 0, 3, 4]])

    found = accuracies(SimpleNamespace(predictions=best, label_ids=np.array([1, 9, 8])))

    assert found == {"accuracy": 1 / 3, "top5_accuracy": 2 / 3}


def test_a_training_image_changes_from_epoch_to_epoch_and_is_the_same_in_the_same_one() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    rows = [{"image": picture, "label": 1}]
    images = Images(rows, ViTImageProcessorPil(size={"height": 12, "width": 12}), seed=3)
    seen = []
    for step in (0, 3, 6, 4):  # of three steps an epoch
        state, args = SimpleNamespace(global_step=step), SimpleNamespace(gradient_accumulation_steps=2)
        TellEpoch(images).on_epoch_begin(args, state, None, train_dataloader=range(5))
        seen.append(images[0]["pixel_values"])

    assert seen[0].shape == (3, 12, 12)
    assert torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    crop = random_crop(Image.new("RGB", (300, 2), "red"), 12, 8, np.random.default_rng(0))  # nothing fits
    assert crop.size == (8, 12) and crop.getpixel((0, 0)) == (255, 0, 0)
