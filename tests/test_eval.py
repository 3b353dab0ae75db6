# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""eval/run.py and eval/tasks, on real lm-evaluation-harness tasks and items."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from modeling_hc import HCLlamaForCausalLM
from modeling_hc.commands import evaluate as run
from modeling_hc.data import stdlib_files, train_tokenizer
from modeling_hc.evaluation.tasks import stdlib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama, with weights large enough for it to prefer some endings to others."""
    folder = tmp_path_factory.mktemp("models") / "residual"
    tokenizer = train_tokenizer((file.read_text("utf-8") for file in stdlib_files("validation")[:3]), 320)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def converted(residual: str) -> str:
    folder = Path(residual).with_name("hc")
    HCLlamaForCausalLM.from_pretrained(residual, num_streams=4, stream_reduction="mean").save_pretrained(folder)
    AutoTokenizer.from_pretrained(residual).save_pretrained(folder)
    return str(folder)


def evaluate(output: Path, *arguments: str) -> dict[str, Any]:
    run.main([*arguments, "--output", str(output), "--log_samples", "--device", "cpu"])
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def report(residual: str, converted: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("report") / "new" / "report.json"
    return evaluate(output, residual, converted, "--tasks", "stdlib", "--limit", "40")


def test_a_converted_model_scores_as_its_residual_parent_item_by_item(report: dict[str, Any]) -> None:
    samples = report["samples"]["stdlib"]
    assert samples["residual"] == samples["hc"] and len(samples["hc"]) == 40
    assert all(values["residual"] == values["hc"] for values in report["results"]["stdlib"].values())


def test_the_report_has_the_documented_layout(report: dict[str, Any], residual: str, converted: str) -> None:
    models = [(model["name"], model["path"], model["dtype"]) for model in report["models"]]
    assert models == [("residual", residual, "torch.float32"), ("hc", converted, "torch.float32")]
    assert report["models"][0]["num_parameters"] == LlamaForCausalLM.from_pretrained(residual).num_parameters()
    assert set(report["results"]["stdlib"]) == {"acc", "bits_per_byte"}
    assert set(report["results"]["stdlib"]["acc"]["hc"]) == {"value", "stderr"}
    task = report["tasks"]["stdlib"]
    assert (task["num_fewshot"], task["num_items"]) == (0, 40)
    assert task["higher_is_better"] == {"acc": True, "bits_per_byte": False}
    assert report["environment"]["torch"] == torch.__version__ and report["environment"]["device"] == "cpu"
    assert report["command"].startswith("modeling-hc evaluate ") and "--limit 40" in report["command"]


@torch.no_grad()
def test_scores_equal_those_summed_by_hand_from_the_models_logits(report: dict[str, Any], residual: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(residual), AutoTokenizer.from_pretrained(residual)
    items = stdlib.load()["validation"]
    correct, log_likelihood, num_bytes = [], 0.0, 0
    for sample in report["samples"]["stdlib"]["residual"]:
        item = items[sample["doc_id"]]
        prefix = tokenizer(item["context"])["input_ids"]
        scores = []
        for ending in item["endings"]:
            ids = prefix + tokenizer(ending)["input_ids"]
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            scores.append(sum(log_probs[i - 1, ids[i]].item() for i in range(len(prefix), len(ids))))
        assert scores == pytest.approx([score for score, _ in sample["responses"]], abs=1e-2)
        correct.append(scores[item["label"]] == max(scores))
        log_likelihood += scores[item["label"]]
        num_bytes += len(item["endings"][item["label"]].encode())
    results = report["results"]["stdlib"]
    assert results["acc"]["residual"]["value"] == pytest.approx(sum(correct) / len(correct))
    assert results["bits_per_byte"]["residual"]["value"] == pytest.approx(
        -log_likelihood / num_bytes / math.log(2), abs=1e-4
    )


def test_a_random_model_guesses(report: dict[str, Any]) -> None:
    acc = report["results"]["stdlib"]["acc"]["residual"]
    assert abs(acc["value"] - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 40)
    assert acc["stderr"] == pytest.approx(math.sqrt(acc["value"] * (1 - acc["value"]) / 39))


def test_the_model_card_lists_the_results(report: dict[str, Any], converted: str, residual: str) -> None:
    card = ModelCard.load(Path(converted) / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results if result.dataset_name == "stdlib"}
    for metric, values in report["results"]["stdlib"].items():
        assert results[metric].metric_value == pytest.approx(values["hc"]["value"])
    assert results["acc"].metric_args["limit"] == 40
    assert "| stdlib | acc |" in card.text
    assert not (Path(residual) / "README.md").exists()


def test_every_item_of_stdlib_is_a_passage_of_held_out_code_and_three_passages_that_do_not_follow_it() -> None:
    items = list(stdlib.load()["validation"])
    assert items == list(stdlib.load()["validation"])
    assert len(items) >= 200 and len({item["context"] for item in items}) == len(items)
    held_out = [file.read_text("utf-8", "replace") for file in stdlib_files("validation")]
    training = "\n".join(file.read_text("utf-8", "replace") for file in stdlib_files("train"))
    for item in items:
        true, wrong = item["endings"][item["label"]], [e for i, e in enumerate(item["endings"]) if i != item["label"]]
        source = next(text for text in held_out if item["context"] + true in text)
        assert all(ending in source and item["context"] + ending not in source for ending in wrong)
        assert all(ending not in item["context"] for ending in item["endings"])
        assert len(set(item["endings"])) == 4 and {len(ending) for ending in item["endings"]} == {len(true)}
        assert not item["context"][-1].isspace() and true.startswith("\n")
        assert true not in training
    counts = [sum(item["label"] == label for item in items) for label in range(4)]
    assert min(counts) > 0.15 * len(items)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HellaSwag and ARC in miniature: the columns and the splits that they have on the Hub, as parquet."""
    folder = tmp_path_factory.mktemp("benchmarks")
    colours = ["red", "green", "blue", "white"]
    hellaswag = [
        {
            "ind": i,
            "activity_label": "Painting a fence",
            "ctx_a": f"A woman has {i + 2} pots of paint.",
            "ctx_b": "she",
            "ctx": f"A woman has {i + 2} pots of paint. she",
            "endings": [f"paints the fence {colour}." for colour in colours],
            "source_id": f"made~{i}",
            "split": "val",
            "split_type": "indomain",
            "label": str(i % 4),
        }
        for i in range(6)
    ]
    arc = [
        {
            "id": f"Made_{i}",
            "question": f"A plant gets {i + 2} hours of light a day. Which colour do its leaves have?",
            "choices": {"text": colours, "label": ["A", "B", "C", "D"]},
            "answerKey": "B",
        }
        for i in range(18)
    ]
    splits = {"hellaswag/validation": hellaswag}
    for task in ("arc_easy", "arc_challenge"):
        splits |= {f"{task}/{split}": arc[i::3] for i, split in enumerate(["train", "validation", "test"])}
    for name, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_real_benchmarks_run_from_local_files(
    residual: str, converted: str, benchmarks: Path, num_fewshot: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tasks = ["hellaswag", "arc_easy", "arc_challenge"]
    settings = ["--num_fewshot", str(num_fewshot), "--limit", "4", "--data", str(benchmarks)]
    report = evaluate(tmp_path / "report.json", residual, converted, "--tasks", *tasks, *settings)
    for task in tasks:
        assert set(report["results"][task]) == {"acc", "acc_norm"}
        assert report["tasks"][task]["num_fewshot"] == num_fewshot
        assert report["samples"][task]["residual"] == report["samples"][task]["hc"]
    assert "| hellaswag     | acc_norm ↑ |" in capsys.readouterr().out


def _prompts(data: Path, name: str, num_fewshot: int) -> list[tuple[dict[str, Any], str]]:
    (group,) = run.load_tasks([name], data, num_fewshot)
    (task,) = group.get_all_tasks()
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(0)
    task.build_all_requests()
    return [(instance.doc, instance.args[0]) for instance in task.instances]


@pytest.mark.parametrize("splits", [["validation"], ["test"], ["validation", "test"], ["train", "test"]])
def test_no_item_is_an_example_in_its_own_prompt_whatever_splits_there_are(splits: list[str], tmp_path: Path) -> None:
    (tmp_path / "arc_easy").mkdir()
    for split in splits:
        rows = [
            {
                "question": f"{split} question {i}?",
                "choices": {"text": ["yes", "no"], "label": ["A", "B"]},
                "answerKey": "A",
            }
            for i in range(4)
        ]
        (tmp_path / "arc_easy" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = _prompts(tmp_path, "arc_easy", num_fewshot=3)
    assert len(prompts) == 8 and all(doc["question"].startswith(splits[-1]) for doc, _ in prompts)
    for doc, prompt in prompts:
        assert prompt.count("Question:") == 4
        assert prompt.count(doc["question"]) == 1


# What the `lm_eval` command calls; and the command itself, which first reads all of lm-eval's tasks.
CALL = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=sys.argv[-1], include_defaults=False)
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
del options["--include_path"]
options["--tasks"] = [options["--tasks"]]
print(simple_evaluate(task_manager=manager, **{key[2:]: value for key, value in options.items()})["results"])
"""
COMMAND = "from lm_eval.__main__ import cli_evaluate\ncli_evaluate()"


@pytest.mark.parametrize("code", [CALL, pytest.param(COMMAND, marks=pytest.mark.slow)], ids=["call", "command"])
def test_lm_eval_itself_runs_a_saved_model_where_the_package_is_absent(
    code: str, converted: str, tmp_path: Path
) -> None:
    rows = [{"text": f"{i} and {i}", "choices": [" more", " less"], "label": 0} for i in range(4)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own_task.yaml").write_text(
        f"task: own_task\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/items.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ntarget_delimiter: ''\n"
        "doc_to_text: text\ndoc_to_choice: choices\ndoc_to_target: label\n"
    )
    arguments = (
        f"--model hf --model_args pretrained={converted},trust_remote_code=True --tasks own_task --device cpu "
        f"--batch_size auto --include_path {tmp_path}"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['modeling_hc'] = None\n{code}", *arguments.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "own_task" in result.stdout and "acc" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "helaswag"], ["helaswag", "hellaswag", "lm_eval ls tasks"]),
        (["--tasks", "stdlib", "--limit", "0"], ["--limit", "'0'", "at least 1"]),
        (["--tasks", "stdlib", "--limit", "-1"], ["--limit", "'-1'"]),
        (["--tasks", "stdlib", "--num_fewshot", "1000"], ["--num_fewshot 1000", "stdlib has"]),
        (["--tasks", "stdlib", "--batch_size", "0"], ["--batch_size", "'0'"]),
        (["--tasks", "stdlib", "--device", "cuda:99"], ["--device cuda:99"]),
        (["--tasks", "piqa", "--data", "{here}"], ["{here}", "no piqa/", "split validation"]),
        (["--tasks", "stdlib", "--output", "{here}"], ["{here}", "is there already"]),
        (["no/such/folder", "--tasks", "stdlib"], ["no/such/folder", "no such folder"]),
        (["{here}", "--tasks", "stdlib"], ["{here}", "no config.json"]),
        (["{residual}", "--tasks", "stdlib"], ["given twice"]),
    ],
)
def test_bad_input_ends_in_a_paragraph_before_a_model_is_loaded(
    arguments: list[str],
    words: list[str],
    residual: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(run.lm_eval, "simple_evaluate", None)
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/train.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n')

    def fill(text: str) -> str:
        return text.format(here=tmp_path, residual=residual)

    with pytest.raises(SystemExit) as stopped:
        run.main([residual, *map(fill, arguments)])
    assert stopped.value.code not in (0, None)
    message = f"{stopped.value.code} {capsys.readouterr().err}"
    assert all(fill(word) in message for word in words), message
    assert len(str(stopped.value.code).splitlines()) == 1


def test_a_tokenizer_that_does_not_fit_the_model_is_rejected(residual: str, tmp_path: Path) -> None:
    LlamaForCausalLM(
        LlamaConfig(vocab_size=100, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(residual).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=r"320 tokens, more than the model's vocab_size of 100"):
        run.check_model(str(tmp_path))


def test_without_a_network_the_error_names_the_ways_out(residual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match=r"baber/piqa.*--data FOLDER.*--tasks stdlib") as stopped:
        run.main([residual, "--tasks", "piqa"])
    assert len(stopped.value.code.splitlines()) == 1


def test_the_command_fails_without_a_traceback(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "eval/run.py"), str(tmp_path), "--tasks", "stdlib"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("run.py: Model") and "Traceback" not in result.stderr


def _generating_task(folder: Path) -> str:
    """Writes a task that is scored by what a model writes; returns its name."""
    rows = [{"question": f"{i} and {i}", "answer": str(2 * i)} for i in range(3)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "written_task.yaml").write_text(
        f"task: written_task\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: question\ndoc_to_target: answer\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return "written_task"


@pytest.mark.report(3, "evaluation on a task that generates text, then anything")
def test_a_folder_stays_whole_after_an_evaluation_of_written_answers(
    residual: str,
    converted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable,
    outcome: Callable,
) -> None:
    monkeypatch.setattr(run, "OUR_TASKS", tmp_path)
    run.task_manager.cache_clear()
    models = [str(shutil.copytree(folder, tmp_path / Path(folder).name)) for folder in (residual, converted)]
    for number in range(2):
        report = evaluate(tmp_path / f"{number}.json", *models, "--tasks", _generating_task(tmp_path))
    run.task_manager.cache_clear()
    values = report["results"]["written_task"]["exact_match"]
    outcome(values["residual"]["value"], values["hc"]["value"])

    card = tmp_path / "hc" / "README.md"
    metadata = yaml.safe_load(card.read_text().split("---")[1])
    (entry,) = (e for e in metadata["model-index"][0]["results"] if e["dataset"]["name"] == "written_task")
    assert entry["metrics"][0]["value"] == values["hc"]["value"]
    (result,) = (r for r in ModelCard.load(card).data.eval_results if r.dataset_name == "written_task")
    assert (result.metric_type, type(result.metric_value)) == ("exact_match", float)
    assert in_process("scripts/push_to_hub.py", tmp_path / "hc", "somebody/model", "--dry_run").returncode == 0


@pytest.mark.parametrize("family", ["residual", "converted"])
@pytest.mark.report(24, "evaluation with a tokenizer that has neither beginning nor end")
def test_a_tokenizer_with_neither_beginning_nor_end_is_rejected_before_anything_is_run(
    family: str, tmp_path: Path, request: pytest.FixtureRequest, outcome: Callable
) -> None:
    folder = shutil.copytree(request.getfixturevalue(family), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(SystemExit, match="neither a beginning- nor an end-of-text token") as stopped:
        run.main([str(folder), "--tasks", "stdlib"])
    outcome("a traceback", "rejected by name")
    assert len(stopped.value.code.splitlines()) == 1
