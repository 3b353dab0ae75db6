# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The documentation's promises: examples and commands run, links lead somewhere, recipes exist.

Every python block of a page runs, in order and in one namespace, unless its first line begins with `# not run`.
"""

import gzip
import importlib
import json
import re
import shlex
import shutil
import signal
import sys
from importlib.util import find_spec
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
import torch
from contract import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_hc import HCLlamaForCausalLM
from modeling_hc.__main__ import UPSTREAM

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NOTEBOOK = DOCS / "notebooks" / "tour.ipynb"
# What a page loads, and which of the two tiny checkpoints stands in for it.
CHECKPOINTS = {
    "HuggingFaceTB/SmolLM2-135M": "residual",
    "runs/demo/llama": "residual",
    "runs/demo/llama-dhc4": "hyper-connected",
    "runs/llama-dhc4": "hyper-connected",
    "you/hc-demo": "hyper-connected",
}


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks of a language, without the indentation that they have in lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def runnable(page: Path) -> list[str]:
    return [code for code in blocks(page, "python") if not code.startswith("# not run")]


def commands() -> list[tuple[Path, str, list[str]]]:
    """Returns page, sub-command and arguments of every `modeling-hc` command in blocks and the README's table."""
    found = []
    for page in PAGES:
        lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
        if page.name == "README.md":
            lines += re.findall(r"^\| [\w ]+ \| .*?`((?:accelerate launch|modeling-hc) .*?)`", page.read_text(), re.M)
        for line in lines:
            words = shlex.split(line, comments=True)
            if "modeling-hc" in words:
                _, name, *arguments = words[words.index("modeling-hc") :]
                found.append((page, name, arguments))
            for i, word in enumerate(words):
                if word.startswith("modeling_hc.commands."):
                    found.append((page, word.rpartition(".")[2].replace("_", "-"), words[i + 1 :]))
    return found


# What stands for a checkpoint in a command.
PLACES = CHECKPOINTS | {
    "SOURCE": "residual",
    "runs/llama-8": "residual",
    **dict.fromkeys(("TARGET", "CHECKPOINT", "runs/mine", "runs/llama-8-dhc4", "runs/smollm-dhc4"), "hyper-connected"),
}
# What a command leaves.
WRITES = {
    "analyze": ["analysis/index.html"],
    "convert": ["subject/config.json"],
    "experiment": ["results/README.md", "results/llama-0.1m/losses.png"],
    "finetune": ["run/model.safetensors", "run/metrics.json"],
    "train": ["run/run.json"],
}
# Toy sizes and places, which win over what a page gives.
TOY = {
    "analyze": "--tokens 64 --window 16 --output analysis",
    "benchmark": "--variants listing-2 dynamic-2 --layers 1 --hidden_size 32 --intermediate_size 64 --head_size 16 "
    "--vocab_size 64 --batch_size 1 --sequence 16 --rounds 2 --decode_tokens 2",
    "evaluate": "--limit 2 --device cpu",
    "finetune": "--output_dir run --max_steps 1 --use_cpu true --report_to none --dataloader_pin_memory false",
    "generate": "--max_new_tokens 2",
    "train": "--output_dir run --max_steps 1 --warmup_steps 0 --block_size 16 --per_device_train_batch_size 2 "
    "--use_cpu true --report_to none --dataloader_pin_memory false --eval_strategy no --eval_on_start false "
    "--logging_steps 1",
}
TOY_DATA = "--train_files text.jsonl --validation_documents 2"
TOY_MODEL = (
    "--config_overrides vocab_size=320,hidden_size=32,intermediate_size=64,num_hidden_layers=1,num_attention_heads=2,"
    "num_key_value_heads=2,max_position_embeddings=64"
)
# Commands that do not run here, by a word of theirs.
ELSEWHERE = {
    "hellaswag": "needs the task's data; tests/test_eval.py has it in small",
    "--gpu": "needs a GPU",
    "--curve": "needs a GPU",
    "--private": "uploads to the Hub",
    "run": "needs the experiments' text; tests/test_experiment.py runs a small grid",
    "--tensor_parallel": "needs two processes; tests/test_distributed.py starts them",
    "cpu-10m": "takes minutes; tests/test_train.py trains with two processes",
    "125m": "streams a data set of the Hub",
    "--dataset_name": "needs a data set of the Hub",
    "--machine_rank": "needs several machines",
    "fashion-mnist": "needs the images; tests/test_train_images.py trains a tiny model",
    "--images": "needs a ViT; tests/test_analyze_images.py has a tiny one",
}


def elsewhere(name: str, arguments: list[str]) -> str | None:
    """Returns why a command does not run here, or None."""
    if name == "demo":
        return "takes ten minutes; tests/test_demo.py has its parts"
    if name in ("serve", "chat"):
        return "starts a server; tests/test_serving.py does"
    if any(word.startswith("paper-") for word in arguments):
        return "is of a size for GPUs; tests/test_recipes.py builds its model"
    return next((reason for word, reason in ELSEWHERE.items() if word in arguments), None)


def distinct() -> list[tuple[str, list[str]]]:
    """Returns the commands that differ in more than where they read and write."""
    found = {}
    for _, name, arguments in commands():
        places = (PLACES.get(word, word) for flag, word in pairwise(["", *arguments]) if flag != "--output_dir")
        found.setdefault((name, *places), (name, arguments))
    return list(found.values())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A residual checkpoint and its HC model, both with a tokenizer, in bf16 as most on the Hub."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in set(CHECKPOINTS.values())}
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folders["residual"])
    model = HCLlamaForCausalLM.from_pretrained(folders["residual"], num_streams=4, stream_reduction="mean")
    model.save_pretrained(folders["hyper-connected"])
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    return folders


def toy(name: str, arguments: list[str], checkpoints: dict[str, Path]) -> list[str]:
    """Returns a command's arguments with tiny models in place of those that it names, and toy sizes."""
    if name == "convert":
        arguments = [arguments[0], "subject", *arguments[2:]]
    here = PLACES.keys() - ({"you/hc-demo"} if name == "push" else set())
    arguments = [str(checkpoints[PLACES[word]]) if word in here else word for word in arguments]
    arguments += TOY.get(name, "").split()
    if name == "train":
        arguments += [] if "--train_files" in arguments else TOY_DATA.split()
        arguments += [] if "--model_name_or_path" in arguments else TOY_MODEL.split()
    if name == "experiment":
        arguments += ["--results", "results"]
    return arguments


@pytest.mark.parametrize(
    ("name", "arguments"), distinct(), ids=[" ".join([name, *arguments])[:70] for name, arguments in distinct()]
)
def test_the_commands_of_the_documentation_run_at_toy_size(name, arguments, checkpoints, tmp_path, monkeypatch):
    if reason := elsewhere(name, arguments):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    texts = [f"w5 w6 w{i} " * 20 for i in range(12)]
    for file in ("text.jsonl", "data/text.jsonl", "data/text.jsonl.gz"):
        with (gzip.open if file.endswith("gz") else open)(file, "wt") as rows:
            rows.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    for file in ("train.csv", "validation.csv"):
        Path(file).write_text("text,label\nw5 w6,good\nw7 w8,bad\n")
    (tmp_path / "results" / "llama-0.1m").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "llama-0.1m" / "runs.jsonl", "results/llama-0.1m")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    words = [toy(name, arguments, checkpoints)]
    if "--resume_from_checkpoint" in arguments:  # what was begun before
        at = words[0].index("--resume_from_checkpoint")
        words = [[*words[0][:at], *words[0][at + 2 :], "--save_steps", "1"], [*words[0], "--max_steps", "2"]]
    try:
        for each in words:
            monkeypatch.setattr(sys, "argv", [f"modeling-hc {name}", *each])
            assert not importlib.import_module(f"modeling_hc.commands.{name.replace('-', '_')}").main()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])

    for file in WRITES.get(name, []):
        assert (tmp_path / file).stat().st_size > 0


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_from_top_to_bottom(page, checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code in runnable(page):
        for name, kind in CHECKPOINTS.items():
            code = code.replace(f'"{name}"', repr(str(checkpoints[kind])))
        exec(compile(code, f"{page.name}: {code[:60]!r}", "exec"), names)


def test_the_notebook_runs_at_toy_size(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(line for line in "\n".join(cells).splitlines() if not line.startswith("%"))
    assert code.count("STEPS = 150") == 1
    names = {"__name__": "__main__"}
    exec(compile(code.replace("STEPS = 150", "STEPS = 2"), NOTEBOOK.name, "exec"), names)
    assert torch.isfinite(names["measurement"].matrix).all() and len(names["table"]) == 8 * 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_to_files(page):
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", target)]
    missing = [target for target in targets if not (page.parent / target.partition("#")[0]).exists()]
    assert missing == []


def test_the_navigation_has_every_page():
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.name for page in DOCS.glob("*.md")}


def test_the_reference_has_every_public_name_and_none_that_is_gone():
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    entries = re.findall(r"^::: (\S+)\n(?:    .*\n)*", text, re.M)
    assert len(entries) >= 8
    for name in entries:
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name
    for package in ("modeling_hc", "modeling_hc.analysis", "modeling_hc.conversion"):
        assert set(importlib.import_module(package).__all__) <= set(re.findall(r"\w+", text))


def test_commands_name_recipes_and_files_that_exist():
    folder = ROOT / "configuration"
    for page, name, arguments in commands():
        recipes = [value for flag, value in pairwise(arguments) if flag == "--config"]
        named = takewhile(lambda word: word != "--connection", arguments)
        recipes += [word for word in named if name == "info" and word[0] != "-"]
        training = arguments[:1] if name == "train" and arguments[0][0] != "-" else []
        for recipe in recipes:
            assert any((folder / "models" / f"{recipe}{end}").is_file() for end in ("", ".json")), (page.name, recipe)
        for recipe in training:
            known = any((folder / "training" / f"{recipe}{end}").is_file() for end in ("", ".yaml"))
            assert known or recipe.endswith(".yaml"), (page.name, recipe)
        for word in arguments:
            assert not word.startswith("configuration/") or (ROOT / word).is_file(), (page.name, word)
    assert len(commands()) > 20


@pytest.mark.parametrize("name", sorted({name for _, name, _ in commands()}))
def test_commands_have_the_options_that_the_documentation_gives_them(name, monkeypatch, capsys):
    used = {
        (page.name, word.partition("=")[0])
        for page, command, arguments in commands()
        for word in arguments
        if command == name and word.startswith("--")
    }
    module = name.replace("-", "_")
    assert name in UPSTREAM or find_spec(f"modeling_hc.commands.{module}") is not None
    if not used:
        return
    if name == "train-diffusion":
        pytest.importorskip("diffusers", reason="the extra diffusion is not installed")
    help_flag = "--help-all" if name in ("train", "train-images", "train-diffusion", "finetune") else "--help"
    monkeypatch.setattr(sys, "argv", [f"modeling-hc {name}", help_flag])
    with pytest.raises(SystemExit):
        importlib.import_module(f"modeling_hc.commands.{module}").main()
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert [use for use in sorted(used) if use[1] not in known] == []
