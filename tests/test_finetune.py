# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Training on from a converted checkpoint: whole, with LoRA, and as a classifier."""

import json
import os
import random
import shutil
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pandas
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from modeling_hc import HCLlamaForSequenceClassification, HCOlmoeConfig
from modeling_hc.commands import finetune, train
from modeling_hc.conversion import to_hyper_connected
from modeling_hc.data import train_tokenizer
from modeling_hc.training.safe_trainer import SafeTrainer

TEXTS = {
    "fruit": ["the", "apple", "and", "the", "pear", "are", "ripe", "and", "sweet", "in", "autumn"],
    "metal": ["an", "iron", "or", "a", "copper", "bar", "was", "cast", "from", "molten", "ore"],
}
COMMON = ["--report_to=none", "--save_strategy=no", "--use_cpu", "--logging_steps=1", "--disable_tqdm=true"]


def run(script: str, monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    """Runs a command line in this process, which saves the start of another."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, flags), *COMMON])
    return {"train.py": train.run, "finetune_classifier.py": finetune.run}[script]()


def write_rows(path: Path, count: int, seed: int) -> Path:
    choose = random.Random(seed)
    labels = [choose.choice(sorted(TEXTS)) for _ in range(count)]
    rows = [{"text": " ".join(choose.choices(TEXTS[label], k=12)), "label": label} for label in labels]
    rows = [row | {"number": 5, "null": None} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_rows(folder / "train.jsonl", 200, seed=0), write_rows(folder / "validation.jsonl", 40, seed=1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory, data) -> Path:
    """A residual model that has been trained, with its tokenizer."""
    folder = tmp_path_factory.mktemp("parent") / "model"
    tokenizer = train_tokenizer([" ".join(words) for words in TEXTS.values()], vocab_size=300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run("train.py", monkeypatch, *on(folder, data, folder.parent / "trained"))
    return folder.parent / "trained"


@pytest.fixture(scope="module")
def twin(tmp_path_factory, parent) -> Path:
    folder = tmp_path_factory.mktemp("twin") / "model"
    to_hyper_connected(parent, folder)
    return folder


def on(model: Path, data: tuple[Path, Path], output: Path) -> list[object]:
    """Returns the flags of a language model's training."""
    return [
        *("--model_name_or_path", model, "--train_files", data[0], "--validation_files", data[1]),
        *("--block_size", 32, "--output_dir", output, "--max_steps", 20, "--learning_rate", 1e-2),
        *("--eval_on_start", "true", "--eval_strategy", "steps", "--eval_steps", 20),
    ]


def losses(folder: Path, key: str = "eval_loss") -> list[float]:
    return [entry[key] for entry in json.loads((folder / "log_history.json").read_text()) if key in entry]


def test_a_converted_twin_trains_on_from_its_parents_loss(parent, twin, data, tmp_path, monkeypatch):
    run("train.py", monkeypatch, *on(parent, data, tmp_path / "residual"))
    run("train.py", monkeypatch, *on(twin, data, tmp_path / "hc"))
    residual, hyper_connected = losses(tmp_path / "residual"), losses(tmp_path / "hc")
    assert abs(residual[0] - losses(parent)[-1]) < 1e-6, "the parent does not train on from where it was"
    assert abs(hyper_connected[0] - residual[0]) < 1e-6
    assert abs(losses(tmp_path / "hc", "loss")[0] - losses(tmp_path / "residual", "loss")[0]) < 1e-6
    assert hyper_connected[-1] < hyper_connected[0] - 0.01
    trained, fresh = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "hc", twin))
    for layer, before in zip(trained.model.layers, fresh.model.layers, strict=True):
        assert not torch.equal(layer.mlp_hc.alpha_bias, before.mlp_hc.alpha_bias)
        assert layer.mlp_hc.alpha_weight.abs().max() > 0


def test_lora_trains_adapters_and_whole_hyper_connections_and_nothing_else(twin, data, tmp_path, monkeypatch):
    run("train.py", monkeypatch, *on(twin, data, tmp_path / "run"), "--lora_r", 4)
    first, *_, last = losses(tmp_path / "run")
    assert last < first - 0.01

    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(twin)
    saved = {name.removeprefix("base_model.model.") for name in adapter}
    connections = {name for name, _ in base.named_parameters() if "_hc." in name}
    adapted = {
        f"{name}.lora_{side}.weight"
        for name, module in base.model.named_modules(prefix="model")
        if isinstance(module, torch.nn.Linear)
        for side in "AB"
    }
    assert saved == connections | adapted

    tokens = AutoTokenizer.from_pretrained(tmp_path / "run")("an iron apple", return_tensors="pt").input_ids
    loaded = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    expected = loaded(tokens).logits
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, AutoModelForCausalLM.from_pretrained(twin)(tokens).logits, atol=1e-2)


def test_lora_is_rejected_where_there_is_no_checkpoint_to_adapt(parent, data, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"lora_r=4 .*modeling-hc convert"):
        run("train.py", monkeypatch, *on(parent, data, tmp_path / "run"), "--lora_r", 4, "--hyper_connect", "true")


def classify(model: Path, data: tuple[Path, Path], output: Path) -> list[object]:
    return [
        *("--model_name_or_path", model, "--train_files", data[0], "--validation_files", data[1]),
        *("--output_dir", output, "--max_steps", 30, "--learning_rate", 3e-3, "--per_device_train_batch_size", 16),
    ]


def test_a_converted_model_learns_to_classify_and_is_scored_as_scikit_learn_scores(twin, data, tmp_path, monkeypatch):
    run("finetune_classifier.py", monkeypatch, *classify(twin, data, tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())

    model = HCLlamaForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    rows = [json.loads(line) for line in data[1].read_text().splitlines()]
    with torch.no_grad():
        scores = [model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax().item() for row in rows]
    predicted = [model.config.id2label[score] for score in scores]
    labels = [row["label"] for row in rows]
    assert metrics["eval_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["eval_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["eval_accuracy"] > 0.9
    assert (tmp_path / "run" / "README.md").is_file()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--label_column", "class"], "no column 'class'"),
        (["--train_files", "nowhere.csv"], "files that exist"),
        (["--max_lenght", "3"], "did you mean 'max_length'\\? "),
        (["--max_len", "3"], "no field 'max_len'"),
        (["--max_length", "x"], r"finetune_classifier.py --help-all"),
        (["--text_column", "number"], r"type int \(5\) in text_column='number'"),
        (["--text_column", "null"], "no row with both a text in 'null'"),
    ],
)
def test_a_classifier_run_rejects_bad_input(flags, message, twin, data, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run("finetune_classifier.py", monkeypatch, *classify(twin, data, tmp_path / "run"), *flags)
    assert not (tmp_path / "run").exists()


def test_the_classifiers_help_lists_every_field(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run("finetune_classifier.py", monkeypatch, "--help-all")
    assert stop.value.code == 0
    listed = set(capsys.readouterr().out.split())
    own = ("model_name_or_path", "train_files", "validation_files", "text_column", "label_column", "max_length")
    assert {f"--{name}" for name in [*own, *(field.name for field in fields(TrainingArguments))]} <= listed


def test_a_family_without_a_classification_head_is_rejected(data, tmp_path, monkeypatch):
    HCOlmoeConfig().save_pretrained(tmp_path / "olmoe")
    with pytest.raises(SystemExit, match=r"model_type=hc_olmoe, .* hc_llama, hc_mistral, hc_olmo,") as error:
        run("finetune_classifier.py", monkeypatch, *classify(tmp_path / "olmoe", data, tmp_path / "run"))
    assert len(error.value.code) < 900
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["parent", "twin"])
def test_a_residual_checkpoint_and_no_other_is_told_that_it_stays_one(
    model, data, tmp_path, monkeypatch, request, caplog
):
    flags = [*classify(request.getfixturevalue(model), data, tmp_path / "run"), "--label_column=klass"]
    with pytest.raises(SystemExit, match="klass"):  # before training
        run("finetune_classifier.py", monkeypatch, *flags)
    assert ("is a residual llama, finetuned as it is" in caplog.text) == (model == "parent")


def test_a_label_that_training_never_showed_is_rejected(twin, data, tmp_path, monkeypatch):
    other = tmp_path / "validation.csv"
    other.write_text("text,label\nthe oak,wood\n")
    with pytest.raises(SystemExit, match="label 'wood'"):
        run("finetune_classifier.py", monkeypatch, *classify(twin, (data[0], other), tmp_path / "run"))


def table(path: Path, rows: list[tuple[object, object]]) -> Path:
    """Writes a CSV as people do, or JSON lines."""
    if path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    else:
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def classifier(folder: Path) -> dict[str, int]:
    """The classes of a saved classifier."""
    return json.loads((folder / "config.json").read_text())["label2id"]


@pytest.mark.parametrize(
    ("train", "validation", "classes"),
    [
        (["NA", "null", "None", "nan", "n/a"], ["nan", "null"], ["NA", "None", "n/a", "nan", "null"]),
        (["0", "1"], ["0.0", "1.0"], ["0", "1"]),
        (["0.0", "1.0"], ["0", "1"], ["0", "1"]),
        (["1.5", "2.0"], ["2", "1.5"], ["1.5", "2"]),
        (["007", "07"], ["007", "07"], ["007", "07"]),
        (["True", "False"], ["TRUE", "false"], ["False", "True"]),
        (["True", "False"], [True, False], ["False", "True"]),
        ([0, 1], [0.0, 1.0], ["0", "1"]),
        ([0.0, 1.0], ["0", "1"], ["0", "1"]),
    ],
)
@pytest.mark.report(17, "tables as spreadsheets and pandas leave them")
def test_labels_of_tables_are_the_classes_that_people_mean(
    train, validation, classes, twin, tmp_path, monkeypatch, outcome
):
    def write(name: str, labels: list[object]) -> Path:
        """What pandas would read otherwise, or anything but text, as JSON."""
        suffix = "csv" if all(isinstance(label, str) for label in labels) else "jsonl"
        return table(tmp_path / f"{name}.{suffix}", [("an iron bar", label) for label in labels])

    files = write("train", train), write("validation", validation)
    run("finetune_classifier.py", monkeypatch, *classify(twin, files, tmp_path / "run"), "--max_steps=1")
    outcome(f"{len(classes)} classes", f"{len(classifier(tmp_path / 'run'))} classes")
    assert classifier(tmp_path / "run") == {name: i for i, name in enumerate(classes)}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "parquet", "JSONL"])
@pytest.mark.report(17, "tables as spreadsheets and pandas leave them")
def test_no_text_of_a_table_is_lost_or_changed(suffix, tmp_path, monkeypatch, outcome):
    texts = ["NA", "null", "007", "1.50", "True", " two words ", 'a "quoted", text']
    frame = pandas.DataFrame({"id": [*range(6), None], "text": texts, "label": ["a", "None"] * 3 + ["a"]})
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "JSONL":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    args = finetune.ClassifierArguments(str(tmp_path), [str(path)], [str(path)])
    rows = finetune.load_rows(args, "train_files")
    outcome(f"{len(texts)} texts", f"{len(rows)} texts")
    assert rows["text"] == texts
    assert rows["label"] == ["a", "None"] * 3 + ["a"]


@pytest.mark.report(17, "tables as spreadsheets and pandas leave them")
def test_rows_without_text_or_label_are_counted_where_they_are_left_out(twin, data, tmp_path, monkeypatch, caplog):
    rows = table(tmp_path / "rows.csv", [("a", "x"), ("b", "y"), ("", "x"), ("c", ""), ("", "")])
    run("finetune_classifier.py", monkeypatch, *classify(twin, (rows, rows), tmp_path / "run"), "--max_steps=1")
    told = "train_files: 3 of 5 rows are left out: 2 without a text in 'text', 2 without a label in 'label'."
    assert told in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("padding", ["none", "the end of text"])
@pytest.mark.parametrize("model", ["parent", "twin"])
@pytest.mark.report(10, "a classifier on a checkpoint without a padding token")
def test_a_checkpoint_without_a_padding_token_pads_with_its_end_of_text(
    model, padding, data, tmp_path, monkeypatch, request, caplog, outcome
):
    source, folder = request.getfixturevalue(model), tmp_path / "unpadded"
    AutoModelForCausalLM.from_pretrained(source, pad_token_id=None).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = None if padding == "none" else tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    run("finetune_classifier.py", monkeypatch, *classify(folder, data, tmp_path / "run"))
    saved, config = AutoTokenizer.from_pretrained(tmp_path / "run"), AutoConfig.from_pretrained(tmp_path / "run")
    assert (saved.pad_token, config.pad_token_id) == (saved.eos_token, saved.eos_token_id)
    assert ("has no padding token" in caplog.text) == (padding == "none")

    # What is padded is read as what is not.
    classes = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    with torch.no_grad():
        batch = classes(**saved(["an iron bar", "the apple and the pear are ripe"], padding=True, return_tensors="pt"))
        alone = classes(**saved("an iron bar", return_tensors="pt"))
    torch.testing.assert_close(batch.logits[:1], alone.logits, rtol=1e-4, atol=1e-5)
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["eval_accuracy"]
    outcome("accuracy > 0.9", f"accuracy {accuracy:.2f}")
    assert accuracy > 0.9


@pytest.mark.report(10, "a classifier on a checkpoint without a padding token")
def test_a_tokenizer_with_nothing_to_pad_with_is_rejected_before_training(twin, data, tmp_path, monkeypatch):
    shutil.copytree(twin, tmp_path / "bare")
    tokenizer = AutoTokenizer.from_pretrained(twin)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(SystemExit, match="neither a padding nor an end-of-text token"):
        run("finetune_classifier.py", monkeypatch, *classify(tmp_path / "bare", data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["parent", "twin"])
@pytest.mark.report(21, "--bf16_full_eval, --fp16_full_eval")
def test_a_classifier_that_is_evaluated_in_half_precision_is_published_as_it_was_trained(
    model, data, tmp_path, monkeypatch, request
):
    flags = [*classify(request.getfixturevalue(model), data, tmp_path / "run"), "--max_steps=2"]
    run("finetune_classifier.py", monkeypatch, *flags, "--bf16_full_eval=true", "--eval_do_concat_batches=false")
    assert {tensor.dtype for tensor in load_file(tmp_path / "run/model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()).keys() >= {"eval_accuracy", "eval_macro_f1"}


@pytest.mark.report(22, "an evaluation that fails after training")
def test_a_classifier_is_published_before_an_evaluation_can_fail(twin, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("an evaluation that fails")

    monkeypatch.setattr(Trainer, "evaluate", fail)
    with pytest.raises(RuntimeError, match="an evaluation that fails"):
        run("finetune_classifier.py", monkeypatch, *classify(twin, data, tmp_path / "run"), "--max_steps=1")
    assert HCLlamaForSequenceClassification.from_pretrained(tmp_path / "run").num_parameters()


def test_sigterm_ends_a_finetuning_run_with_a_checkpoint_from_which_it_goes_on_to_the_same_weights(
    twin, data, tmp_path, monkeypatch
):
    run("finetune_classifier.py", monkeypatch, *classify(twin, data, tmp_path / "whole"), "--max_steps=4")
    flags = [*classify(twin, data, tmp_path / "run"), "--max_steps=4"]
    step = SafeTrainer.training_step
    handler = signal.getsignal(signal.SIGTERM)

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(SafeTrainer, "training_step", terminated)
            assert run("finetune_classifier.py", patch, *flags) == train.STOPPED
        assert not (tmp_path / "run" / "metrics.json").exists()
        run("finetune_classifier.py", monkeypatch, *flags, "--resume_from_checkpoint=true")
    finally:
        signal.signal(signal.SIGTERM, handler)

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
