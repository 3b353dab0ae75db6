# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/train.py with the real Trainer on tiny models and real text."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TrainerCallback, TrainingArguments

from modeling_hc.commands import train
from modeling_hc.data import DataArguments, load_documents, make_blocks, stdlib_files
from modeling_hc.recipes import load_recipe
from modeling_hc.training.arguments import ModelArguments, parse

ROOT = Path(__file__).parents[1]

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Text, a recipe, and a YAML, relative to which everything below runs."""
    home = tmp_path_factory.mktemp("train")
    texts = [path.read_text(encoding="utf-8")[:1500] for path in stdlib_files("train")[:30]]
    for name, part in (("train", texts[:24]), ("validation", [*texts[24:], "naïve café: größer, 中文"])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (home / "llama.json").write_text(json.dumps(LLAMA))
    (home / "hc.json").write_text(json.dumps(LLAMA | {"model_type": "hc_llama", "num_streams": 2}))
    return home


def recipe(home: Path, output: str, **fields) -> list[str]:
    """Writes the YAML of a small run with some fields changed (None takes one away) and returns the arguments."""
    values = {
        "config": f"{home}/llama.json",
        "output_dir": f"{home}/{output}",
        "train_files": [f"{home}/train*.jsonl"],
        "validation_files": [f"{home}/validation.jsonl"],
        "block_size": 32,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 5,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 3,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    path = home / f"{output}.yaml"
    path.write_text(yaml.safe_dump(values | fields))
    return [str(path)]


def run(home: Path, output: str, *flags: str, **fields) -> Path:
    """Trains in this process and returns the run folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *recipe(home, output, **fields), *flags])
        train.run()
    return home / output


@pytest.fixture(scope="module")
def residual(home) -> Path:
    return run(home, "residual", report_to="tensorboard")


def history(folder: Path, key: str) -> list[float]:
    return [entry[key] for entry in json.loads((folder / "log_history.json").read_text()) if key in entry]


def test_a_run_from_scratch_learns_and_leaves_a_whole_model_folder(residual):
    losses = history(residual, "loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1
    tokenizer, model = AutoTokenizer.from_pretrained(residual), AutoModelForCausalLM.from_pretrained(residual)
    assert tokenizer.decode(tokenizer("def größer():\n\treturn 1")["input_ids"]) == "def größer():\n\treturn 1"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (0, 1, 64)
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id) == (0, 1, None)
    assert model.generation_config.eos_token_id in (0, [0])  # the Trainer of older transformers makes it a list
    assert model.generation_config.pad_token_id == 1
    record = json.loads((residual / "run.json").read_text())
    assert record["command"].startswith("python train.py")
    assert record["tokens_seen"] == 6 * 4 * 32
    assert record["configuration"]["learning_rate"] == 1e-2
    assert {"modeling_hc", "python", "torch", "transformers", "accelerate", "datasets"} <= record["versions"].keys()
    assert record["results"]["eval_loss"] == history(residual, "eval_loss")[-1]
    assert list(residual.glob("runs/*/events.out.tfevents.*"))
    assert (residual / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_metrics_equal_a_computation_from_the_text_alone(home, residual):
    """Loss, bits per byte and accuracy, token by token in fp64, for a number of blocks that fills no last batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(residual), AutoModelForCausalLM.from_pretrained(residual).double()
    texts = [json.loads(line)["text"] for line in (home / "validation.jsonl").read_text().splitlines()]
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    assert len(blocks) % 5
    nats, correct = 0.0, 0
    for block in blocks:
        log_probabilities = model(block[None]).logits[0].log_softmax(-1)
        for position in range(31):
            nats -= log_probabilities[position, block[position + 1]].item()
            correct += log_probabilities[position].argmax().item() == block[position + 1].item()
    loss = nats / (31 * len(blocks))
    results = json.loads((residual / "run.json").read_text())["results"]
    assert results["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert results["eval_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert results["eval_token_accuracy"] == pytest.approx(correct / (31 * len(blocks)))
    bits_of_all_tokens = loss / math.log(2) * len(ids)
    assert results["eval_bits_per_byte"] == pytest.approx(bits_of_all_tokens / len("".join(texts).encode()), rel=1e-5)


@pytest.mark.parametrize("streams", [1, 4])
def test_a_hyper_connected_checkpoint_starts_at_its_residual_parents_loss_and_trains_on(home, residual, streams):
    folder = run(
        home,
        f"hyper-connected-{streams}",
        config=None,
        model_name_or_path=str(residual),
        hyper_connect=True,
        config_overrides=f"num_streams={streams},connection=dynamic",
        eval_on_start=True,
    )
    losses = history(folder, "eval_loss")
    assert losses[0] == pytest.approx(history(residual, "eval_loss")[-1], abs=1e-6)
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.num_streams, model.config.stream_reduction) == (streams, "mean")
    further = run(
        home, f"further-{streams}", config=None, model_name_or_path=str(folder), eval_on_start=True, max_steps=3
    )
    assert history(further, "eval_loss")[0] == pytest.approx(losses[-1], abs=1e-6)
    card = (folder / "README.md").read_text()
    assert "Held-out bits per byte" in card and str(residual) in card


DROPOUT = {"config_overrides": "attention_dropout=0.1", "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def whole(home) -> Path:
    return run(home, "whole", config=f"{home}/hc.json", **DROPOUT)


def test_recomputed_streams_train_the_same_weights(home, whole):
    again = run(home, "recomputed", config=f"{home}/hc.json", recompute_streams=True, **DROPOUT)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(home, whole):
    resumed = home / "resumed"
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    written = (resumed / "checkpoint-3/model.safetensors").stat().st_mtime_ns
    run(home, "resumed", "--resume_from_checkpoint", "true", config=f"{home}/hc.json", **DROPOUT)
    assert (resumed / "checkpoint-3/model.safetensors").stat().st_mtime_ns == written  # or it would have started anew
    expected, weights = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert history(resumed, "loss") == history(whole, "loss")


@pytest.mark.parametrize("save_steps", [1, 6])
def test_a_stopped_run_says_how_to_go_on_and_remembers_its_commands(home, save_steps, monkeypatch):
    def stop(_, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    name = f"stopped-{save_steps}"
    with monkeypatch.context() as patch:
        patch.setattr(TrainerCallback, "on_step_begin", stop)
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
        with pytest.raises(SystemExit, match="checkpoint-2" if save_steps == 1 else "from its beginning") as end:
            run(home, name, save_steps=save_steps)
    signal.signal(signal.SIGINT, ignored)
    assert "\n" not in end.value.code
    run(home, name, "--resume_from_checkpoint", "true", save_steps=save_steps)
    first, second = json.loads((home / name / "run.json").read_text())["commands"]
    assert second == f"{first} --resume_from_checkpoint true"
    assert len(history(home / name, "loss")) == 6


def test_two_processes_under_accelerate_launch_train_what_one_process_trains(home):
    one = run(home, "one", config=f"{home}/hc.json")
    two = home / "two"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0", "--config_file"]
    command += [str(ROOT / "configuration/accelerate/multi-cpu.yaml"), str(ROOT / "scripts/train.py")]
    command += recipe(home, "two", config=f"{home}/hc.json", per_device_train_batch_size=2)
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    assert history(two, "loss") == pytest.approx(history(one, "loss"), rel=1e-4)
    assert history(two, "eval_loss") == pytest.approx(history(one, "eval_loss"), rel=1e-4)


def test_processes_that_would_each_train_alone_are_rejected(home, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # by `accelerate launch`
    with pytest.raises(ValueError, match="2 processes were launched, but transformers finds 1"):
        parse(recipe(home, "alone", use_cpu=False))


def listed_by(flag: str, capsys) -> set[str]:
    with pytest.raises(SystemExit) as stop:
        parse([flag])
    assert stop.value.code == 0
    return set(capsys.readouterr().out.split())


def test_help_all_lists_every_field(capsys):
    assert {
        f"--{f.name}" for kind in (ModelArguments, DataArguments, TrainingArguments) for f in fields(kind)
    } <= listed_by("--help-all", capsys)


def test_help_lists_our_fields_and_the_usual_ones_and_where_the_others_are(capsys):
    listed = listed_by("--help", capsys)
    ours = {f"--{f.name}" for kind in (ModelArguments, DataArguments) for f in fields(kind)}
    assert ours | {"--output_dir", "--learning_rate", "--on_nonfinite", "--help-all"} <= listed
    assert "--hub_token" not in listed and "--no_skip_memory_metrics" not in listed


def test_lora_on_a_residual_checkpoint_says_that_it_trains_no_hyper_connections(home, monkeypatch):
    for name in ("llama", "hc"):
        model = AutoModelForCausalLM.from_config(load_recipe(home / f"{name}.json"))
        messages = []
        monkeypatch.setattr(train.logger, "warning", messages.append)
        train.with_lora(model, 2)
        assert [("residual llama" in text, "modeling-hc convert" in text) for text in messages] == (
            [(True, True)] if name == "llama" else []
        )


def test_the_stock_trainer_decays_the_dynamic_part_and_not_the_static_part(home):
    trainer, _ = train.prepare(*parse(recipe(home, "decay", config=f"{home}/hc.json")))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decays = {
        names[id(parameter)]: group["weight_decay"] > 0
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    for layer in (0, 1):
        for module in ("attn_hc", "mlp_hc"):
            part = f"model.layers.{layer}.{module}"
            assert decays[f"{part}.alpha_weight"] and decays[f"{part}.beta_weight"]
            assert not decays[f"{part}.alpha_bias"] and not decays[f"{part}.beta_bias"]


def test_a_mixture_of_experts_trains_with_its_routers_outputs(home):
    experts = {"model_type": "hc_olmoe", "num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    (home / "olmoe.json").write_text(json.dumps(LLAMA | experts))
    folder = run(home, "olmoe", config=f"{home}/olmoe.json", max_steps=1, warmup_steps=0)
    assert history(folder, "eval_loss")[0] == pytest.approx(math.log(320), rel=0.05)


def test_a_stream_has_the_blocks_of_the_data_on_disk(home, residual):
    tokenizer = AutoTokenizer.from_pretrained(residual)
    blocks = []
    for streaming in (False, True):
        args = DataArguments(
            train_files=[str(home / "train.jsonl")], streaming=streaming, block_size=32, validation_documents=0
        )
        documents, held_out = load_documents(args)
        assert held_out is None
        blocks.append([block["input_ids"] for block in make_blocks(documents, "training", tokenizer, args)[0]])
    assert blocks[0] == blocks[1]
    assert all(len(block) == 32 for block in blocks[0])


def test_held_out_documents_are_not_trained_on(home):
    args = DataArguments(train_files=[str(home / "train.jsonl")], validation_documents=5)
    train_documents, held_out = load_documents(args)
    texts = [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]
    assert sorted([*train_documents["text"], *held_out["text"]]) == sorted(texts)
    assert len(held_out) == 5


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("documents", "expected"), [(2, 1), (24, 2), (1200, 100)])
def test_a_tenth_of_the_documents_and_at_most_100_are_held_out_by_default(documents, expected, streaming, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(documents)))
    train_documents, held_out = load_documents(DataArguments(train_files=[str(path)], streaming=streaming))
    assert len(held_out) == expected
    assert len(list(train_documents)) == documents - expected


def test_the_default_text_is_split_without_duplicates():
    files = {split: stdlib_files(split) for split in ("train", "validation")}
    digests = [hashlib.md5(path.read_bytes().strip()).digest() for split in files.values() for path in split]
    assert len(set(digests)) == len(digests) > 300
    assert len(digests) / 40 < len(files["validation"]) < len(digests) / 10


@pytest.fixture(scope="module")
def broken(home, residual, whole) -> Path:
    """Damaged and unfit files and checkpoints, beside the good ones."""
    (home / "empty.txt").touch()
    (home / "binary.txt").write_bytes(bytes(range(256)))
    (home / "broken.parquet").write_bytes(b"PAR1" + bytes(100))
    (home / "short.txt").write_text("x")
    (home / "nulls.jsonl").write_text('{"text": null}\n' * 10)
    (home / "mixed.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": 5}\n' * 10)
    (home / "single.jsonl").write_text('{"text": "one"}\n')
    (home / "numbers.jsonl").write_text('{"text": 1}\n' * 10)
    config = LlamaConfig(**{key: value for key, value in LLAMA.items() if key != "model_type"})
    config.tie_word_embeddings = False
    for name in ("missing", "misshaped", "truncated"):
        shutil.copytree(home / "residual", home / name, ignore=shutil.ignore_patterns("checkpoint-*", "model*"))
        config.save_pretrained(home / name)
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
        if name == "missing":
            del tensors["lm_head.weight"]
        elif name == "misshaped":
            tensors["model.norm.weight"] = torch.ones(31)
        path = home / name / "model.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        if name == "truncated":
            path.write_bytes(path.read_bytes()[:5000])
    return home


def checkpoint(name: str) -> dict[str, str | None]:
    return {"config": None, "model_name_or_path": "{home}/" + name}


BAD_INPUT = {
    "unknown field": ({"learning_rat": 1}, ["learning_rat", "did you mean 'learning_rate'? --help-all"]),
    "override without a value": ({"config_overrides": "num_layers"}, ["config_overrides", "'num_layers'", "="]),
    "streams of a residual recipe": (
        {"config_overrides": "num_streams=2"},
        ["'num_streams'", "LlamaConfig", "hc_llama", "hyper_connect=true"],
    ),
    "wrong type": ({"max_steps": "many"}, ["max_steps", "many"]),
    # The message is transformers': 5.17 names no value.
    "value out of range": ({"warmup_steps": -1}, ["warmup_steps"]),
    "contradiction of precisions": ({"bf16": True, "fp16": True}, ["bf16", "fp16"]),
    "recipe and checkpoint": ({"model_name_or_path": "{home}/residual"}, ["config", "model_name_or_path"]),
    "neither recipe nor checkpoint": ({"config": None}, ["config", "model_name_or_path"]),
    "no such recipe": ({"config": "none.json"}, ["none.json"]),
    "no such checkpoint": (checkpoint("none"), ["model_name_or_path", "none"]),
    "override of an unknown field": ({"config_overrides": "num_layers=3"}, ["num_layers", "num_hidden_layers"]),
    "hyper_connect from scratch": ({"hyper_connect": True}, ["hyper_connect", "model_name_or_path"]),
    "tensor parallelism from scratch": ({"tensor_parallel": True}, ["tensor_parallel", "model_name_or_path"]),
    "two sources of data": ({"dataset_name": "x"}, ["dataset_name", "train_files"]),
    "held-out files alone": ({"train_files": None}, ["train_files", "validation_files"]),
    "no such dataset": (
        {"dataset_name": "{home}/none", "train_files": None, "validation_files": None},
        ["dataset_name", "none"],
    ),
    "no such file": ({"train_files": ["{home}/none*.txt"]}, ["train_files", "none*.txt"]),
    "empty file": ({"train_files": ["{home}/empty.txt"]}, ["train_files", "empty.txt", "is empty"]),
    "binary file": ({"train_files": ["{home}/binary.txt"]}, ["train_files", "binary.txt"]),
    "broken parquet": ({"train_files": ["{home}/broken.parquet"]}, ["train_files", "broken.parquet"]),
    "no such column": ({"text_column": "body"}, ["text_column", "body", "text"]),
    "column of numbers": ({"train_files": ["{home}/numbers.jsonl"]}, ["text_column", "text (int)"]),
    "column of nulls": ({"train_files": ["{home}/nulls.jsonl"]}, ["nulls.jsonl", "text_column", "NoneType"]),
    "column of anything": ({"train_files": ["{home}/mixed.jsonl"]}, ["mixed.jsonl", "text_column", "int (5)"]),
    "held-out numbers": ({"validation_files": ["{home}/mixed.jsonl"]}, ["validation_files", "mixed.jsonl", "int"]),
    "one document": (
        {"train_files": ["{home}/single.jsonl"], "validation_files": None},
        ["--validation_files", "--validation_documents"],
    ),
    "all held out": ({"validation_files": None, "validation_documents": 24}, ["validation_documents", "24"]),
    "less than a block": ({"train_files": ["{home}/short.txt"]}, ["training", "block_size=32"]),
    "block too long": ({"block_size": 65}, ["block_size=65", "max_position_embeddings=64"]),
    "no such tokenizer": ({"tokenizer": "{home}/none"}, ["tokenizer", "none"]),
    "tokenizer too large": (
        {"tokenizer": "{home}/residual", "config_overrides": "vocab_size=300"},
        ["tokenizer", "320", "vocab_size=300", "residual"],
    ),
    "vocabulary too small": ({"config_overrides": "vocab_size=200"}, ["vocab_size=200", "258"]),
    "missing tensor": (checkpoint("missing"), ["model_name_or_path", "lm_head.weight"]),
    "tensor of another shape": (checkpoint("misshaped"), ["model_name_or_path", "model.norm.weight (31,)"]),
    "truncated weights": (checkpoint("truncated"), ["model_name_or_path", "truncated"]),
    "hyper-connected twice": (checkpoint("whole") | {"hyper_connect": True}, ["hyper_connect", "hc_llama", "olmo"]),
    "folder in use": ({"output_dir": "{home}/residual"}, ["output_dir", "residual", "resume_from_checkpoint"]),
    "resuming another run": (
        {"output_dir": "{home}/residual", "resume_from_checkpoint": True, "block_size": 16},
        ["output_dir", "residual", "block_size=32", "block_size=16"],
    ),
    "resuming into a folder in use": (
        {"output_dir": "{home}/residual", "resume_from_checkpoint": "{home}/whole/checkpoint-3"},
        ["output_dir", "residual", "resume_from_checkpoint"],
    ),
    "resuming another model": (
        {"resume_from_checkpoint": "{home}/residual/checkpoint-3"},
        ["resume_from_checkpoint", "residual", "output_dir", "model_name_or_path"],
    ),
    "streams of a residual model": ({"recompute_streams": True}, ["recompute_streams", "llama"]),
    "no such tracker": ({"report_to": "trackr"}, ["trackr"]),
    "nothing to resume": ({"resume_from_checkpoint": True}, ["resume_from_checkpoint", "output_dir"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_rejected_in_one_paragraph_before_anything_is_written(case, broken, residual, tmp_path):
    fields, words = json.loads(json.dumps(BAD_INPUT[case]).replace("{home}", str(broken)))
    before = {path: path.stat().st_mtime_ns for path in residual.rglob("*")}
    with pytest.raises(SystemExit) as error:
        run(broken, "bad", **fields)
    message = error.value.code
    assert all(word in message for word in words), message
    assert len(message) < 900 and message.count("\n") <= 2, message
    assert not (broken / "bad").exists()
    assert before == {path: path.stat().st_mtime_ns for path in residual.rglob("*")}


EVALUATED = {"eval_steps": 2, "save_steps": 2, "eval_on_start": False}


def held_out_loss(home: Path, folder: Path) -> float:
    """Of the model in a run folder, on the held-out text as the script packs it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    args = DataArguments(train_files=[str(home / "validation.jsonl")], validation_documents=0, block_size=32)
    blocks, _ = make_blocks(load_documents(args)[0], "held-out", AutoTokenizer.from_pretrained(folder), args)
    ids = torch.tensor(blocks["input_ids"])
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


@pytest.mark.parametrize("model", ["llama", "hc"])
@pytest.mark.report(13, "load_best_model_at_end")
def test_card_and_record_report_the_weights_that_are_published(home, model, outcome):
    """The best evaluation is the one of the highest loss here, so that it is not the last."""
    folder = run(
        home,
        f"best-{model}",
        config=f"{home}/{model}.json",
        load_best_model_at_end=True,
        greater_is_better=True,
        max_steps=8,
        **EVALUATED,
    )
    record, loss = json.loads((folder / "run.json").read_text()), held_out_loss(home, folder)
    outcome(f"published {loss:.4f}", f"reported {record['results']['eval_loss']:.4f}")
    evaluations = history(folder, "eval_loss")
    assert len(evaluations) == 4 and evaluations[-1] < evaluations[0] - 0.1
    assert record["results"]["eval_loss"] == evaluations[0] == pytest.approx(loss, rel=1e-5)
    assert (record["published_step"], record["steps"]) == (2, 8)
    if model == "hc":
        card = (folder / "README.md").read_text()
        assert f"| Held-out loss | {record['results']['eval_loss']} |" in card
        assert f"these are the weights after step {record['published_step']} |" in card


@pytest.mark.parametrize("model", ["llama", "hc"])
@pytest.mark.parametrize("flag", ["bf16_full_eval", "fp16_full_eval"])
@pytest.mark.report(21, "--bf16_full_eval, --fp16_full_eval")
def test_an_evaluation_in_half_precision_leaves_the_published_weights_as_they_were_trained(home, model, flag, outcome):
    folder = run(home, f"{flag}-{model}", config=f"{home}/{model}.json", eval_strategy="no", **{flag: True})
    published, trained = load_file(folder / "model.safetensors"), load_file(folder / "checkpoint-6/model.safetensors")
    outcome(*({str(tensor.dtype) for tensor in weights.values()} for weights in (trained, published)))
    assert {tensor.dtype for tensor in published.values()} == {torch.float32}
    assert all(torch.equal(published[name], trained[name]) for name in trained)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert history(folder, "eval_loss")


@pytest.mark.parametrize("model", ["llama", "hc"])
@pytest.mark.report(22, "--eval_do_concat_batches false, and other settings of evaluations")
def test_an_evaluation_finds_the_same_however_it_collects_its_batches(home, model, outcome):
    expected = history(run(home, f"evaluated-{model}", config=f"{home}/{model}.json", max_steps=3), "eval_loss")
    for number, settings in enumerate(
        [{"eval_do_concat_batches": False}, {"eval_accumulation_steps": 1}, {"eval_use_gather_object": True}]
    ):
        folder = run(home, f"evaluated-{model}-{number}", config=f"{home}/{model}.json", max_steps=3, **settings)
        found = history(folder, "eval_loss")
        outcome(f"{expected[-1]:.4f}", f"{found[-1]:.4f}")
        assert found == pytest.approx(expected, rel=1e-6)
        assert history(folder, "eval_bits_per_byte")
    with pytest.raises(SystemExit, match="batch_eval_metrics=true is not supported"):
        run(home, "batch-metrics", batch_eval_metrics=True)


@pytest.mark.parametrize("model", ["llama", "hc"])
@pytest.mark.report(22, "an evaluation that fails after training")
def test_a_finished_training_is_published_before_an_evaluation_can_fail(home, model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("an evaluation that fails")

    monkeypatch.setattr(train.SafeTrainer, "evaluate", fail)
    name = f"unevaluated-{model}"
    with pytest.raises(RuntimeError, match="an evaluation that fails"):
        run(home, name, config=f"{home}/{model}.json", eval_strategy="no")
    folder = home / name
    published, trained = load_file(folder / "model.safetensors"), load_file(folder / "checkpoint-6/model.safetensors")
    assert all(torch.equal(published[key], trained[key]) for key in trained)
    assert json.loads((folder / "run.json").read_text())["tokens_seen"] == 6 * 4 * 32
    assert len(history(folder, "loss")) == 6
    assert model == "llama" or "| Steps | 6 |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("report_to", ["none", "tensorboard"])
@pytest.mark.report(24, "a start that fails, and the next try")
def test_a_start_that_fails_does_not_block_the_next(home, report_to, resume, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    name = f"failed-{report_to}-{resume}"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(train.SafeTrainer, "training_step", fail)
        run(home, name, report_to=report_to)
    assert not (home / name / "run.json").exists()
    flags = ["--resume_from_checkpoint", "true"] if resume else []
    folder = run(home, name, *flags, report_to=report_to, per_device_train_batch_size=2)
    record = json.loads((folder / "run.json").read_text())
    assert (record["tokens_seen"], len(record["commands"])) == (6 * 2 * 32, 1)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("learning_rate: 3e-4", "learning_rate", 3e-4),
        ("learning_rate: 1E-3", "learning_rate", 1e-3),
        ("learning_rate: 5.e-4", "learning_rate", 5e-4),
        ("max_steps: 1e5", "max_steps", 100_000),
        ("max_steps: 1_000", "max_steps", 1000),
        ("adam_epsilon: 1e-8", "adam_epsilon", 1e-8),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("save_strategy: no", "save_strategy", "no"),
        ("bf16_full_eval: yes", "bf16_full_eval", True),
        ("run_name: 2024-01-01", "run_name", "2024-01-01"),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-5}",
            "lr_scheduler_kwargs",
            {"min_lr": 1e-5},
        ),
        (
            "lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {num_decay_steps: 1_0, min_lr_ratio: 1e-1}",
            "lr_scheduler_kwargs",
            {"num_decay_steps": 10, "min_lr_ratio": 0.1},
        ),
    ],
)
@pytest.mark.report(14, "numbers in YAML as people write them")
def test_numbers_in_yaml_are_read_as_people_write_them(text, field, value, home, outcome):
    path = home / "numbers.yaml"
    path.write_text(f"config: {home}/llama.json\noutput_dir: {home}/numbers\nuse_cpu: true\n{text}\n")
    *_, args = parse([str(path)])
    found = getattr(args, field)
    outcome(yaml.safe_load(text).get(field), found)
    assert found == value


@pytest.mark.parametrize(
    "fields",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "a little"}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"minimum": 1e-5}},
        {"lr_scheduler_type": "cosine_with_min_lr"},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": "1e-7 or so"}},
    ],
)
@pytest.mark.report(14, "numbers in YAML as people write them")
def test_settings_of_a_scheduler_that_it_cannot_use_are_rejected_before_the_folder_is_made(fields, home):
    with pytest.raises(SystemExit, match=r"^train\.py: lr_scheduler_kwargs=.* lr_scheduler_type=\w+ "):
        run(home, "unscheduled", **fields)
    assert not (home / "unscheduled").exists()


def test_a_flag_that_overrides_the_model_reads_numbers_as_yaml_does(home):
    overrides = "initializer_range=2e-2,vocab_size=1_024,use_tanh=False"
    config = train.model_config(ModelArguments(config=f"{home}/hc.json", config_overrides=overrides))
    assert (config.initializer_range, config.vocab_size, config.use_tanh) == (2e-2, 1024, False)
