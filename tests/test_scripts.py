# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The command lines that send a model to the Hub and let models write."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import test_modeling_hc_llama
from contract import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_hc import HCLlamaForCausalLM
from modeling_hc.commands import generate
from modeling_hc.conversion import to_hyper_connected

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    test_modeling_hc_llama.TestHCLlama().trained().save_pretrained(folder, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True)


def test_what_would_be_uploaded_is_the_whole_model_without_the_training_state(
    saved: Path, in_process: Callable
) -> None:
    for name in ("optimizer.pt", "training_args.bin", ".secret"):
        (saved / name).write_text("not for sharing")
    (saved / "checkpoint-5").mkdir()

    done = in_process("scripts/push_to_hub.py", saved, "somebody/model", "--dry_run")

    assert done.returncode == 0, done.stderr
    listed = {line.split()[-1] for line in done.stdout.splitlines() if " bytes  " in line} - {"all"}
    private = {"optimizer.pt", "training_args.bin", ".secret", "checkpoint-5"}
    assert listed == {file.name for file in saved.iterdir()} - private
    assert {"README.md", "config.json", "modeling_hc_llama.py", "tokenizer.json"} < listed
    assert "license" in done.stdout


def test_nothing_is_uploaded_from_an_incomplete_folder_or_without_a_token(
    saved: Path, tmp_path: Path, in_process: Callable
) -> None:
    without_token = run("push_to_hub.py", saved, "somebody/model", HF_HOME=str(tmp_path / "home"))
    next(saved.glob("model-00002-of-*.safetensors")).unlink()
    without_shard = in_process("scripts/push_to_hub.py", saved, "somebody/model")

    for done, reason in ((without_token, "hf auth login"), (without_shard, "lacks model-00002-of-")):
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_a_residual_model_is_uploaded_without_a_card_and_ours_is_not(
    saved: Path, tmp_path: Path, in_process: Callable
) -> None:
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "residual")
    (saved / "README.md").unlink()

    residual = in_process("scripts/push_to_hub.py", tmp_path / "residual", "somebody/model", "--dry_run")
    ours = in_process("scripts/push_to_hub.py", saved, "somebody/model", "--dry_run")

    assert residual.returncode == 0, residual.stderr
    assert "without a card" in residual.stdout
    assert ours.returncode == 1 and "lacks README.md" in ours.stderr


def test_models_write_side_by_side(saved: Path) -> None:
    done = run("generate.py", saved, saved, "--prompt", "w5 w6", "--max_new_tokens", "3", HF_HUB_OFFLINE="1")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"--- {saved}") == 2
    written = [line for line in done.stdout.splitlines() if line.startswith("w5 w6 w")]
    assert len(written) == 2
    assert written[0] == written[1]  # the same model and seed


def test_a_folder_without_a_configuration_is_named_in_one_way_by_all(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from modeling_hc.commands import finetune, loading, train
    from modeling_hc.training.arguments import ModelArguments, SafeTrainingArguments

    name = str(tmp_path)
    arguments = finetune.ClassifierArguments(name, ["train.csv"], ["validation.csv"])
    for load in (
        lambda: HCLlamaForCausalLM.from_pretrained(name),
        lambda: loading.load(name),
        lambda: train.model_config(ModelArguments(model_name_or_path=name)),
        lambda: finetune.prepare(arguments, SafeTrainingArguments(output_dir=str(tmp_path / "run"))),
        lambda: to_hyper_connected(name, f"{name}-target"),
    ):
        with pytest.raises(ValueError, match=f"^{name} has no config.json, so it is not a model checkpoint.$"):
            load()


def test_a_misspelt_flag_of_generate_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for words, named in ((["--promt", "w5"], "arguments: --promt"), ([], "--prompt is missing")):
        monkeypatch.setattr(sys, "argv", ["generate.py", str(saved), *words])
        with pytest.raises(SystemExit):
            generate.main()
        assert named in capsys.readouterr().err
