# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The card that a saved model carries says what is true and survives what is quoted into it."""

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from transformers import AutoModelForSequenceClassification
from transformers.trainer_utils import IntervalStrategy

from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM
from modeling_hc.model_card_hc import add_evaluation, add_training
from modeling_hc.records import write_json

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}


def result(task: str, value: Any, **setting: Any) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=task,
        dataset_name=task,
        metric_type="acc",
        metric_value=value,
        metric_args=setting,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    HCLlamaForCausalLM(HCLlamaConfig(**SIZES, num_streams=2, use_tanh=False)).save_pretrained(tmp_path)
    return tmp_path


def test_a_card_states_variant_sizes_and_head(folder: Path, tmp_path: Path) -> None:
    card = ModelCard.load(folder / "README.md")

    # A connection has d(n+2) + n(n+2) + 2 parameters and its norm d (Eq. 25 of the paper); a layer has two.
    assert f"of which {2 * (16 * 4 + 2 * 4 + 2 + 16)} in hyper-connections" in card.text
    assert "DHCx2 W/O tanh" in card.text
    assert "2409.19606" in card.text
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hyper-connections", "hc_llama"],
    }
    assert "## Training" not in card.text
    assert "## Evaluation" not in card.text
    classifier = AutoModelForSequenceClassification.from_config(HCLlamaConfig(**SIZES, connection="static"))
    classifier.save_pretrained(tmp_path / "classifier")
    other = ModelCard.load(tmp_path / "classifier" / "README.md")
    assert other.data.pipeline_tag == "text-classification"
    assert "SHCx4" in other.text


def test_training_is_stated_once_and_quoted_text_cannot_break_the_card(folder: Path) -> None:
    before = ModelCard.load(folder / "README.md").text
    add_training(folder, "python train.py earlier", {"Data": "earlier"})
    command = "python train.py --name '```' # ## Evaluation"
    assert add_training(folder, command, {"Data": "a|b\n## c <b>"}, ["org/data"])

    card = ModelCard.load(folder / "README.md")

    assert "earlier" not in card.text
    assert f"````bash\n{command}\n````" in card.text
    assert r"| Data | a\|b ## c &lt;b> |" in card.text
    assert card.data.datasets == ["org/data"]
    assert card.text.endswith(before[before.index("<!-- evaluation -->") :])


def test_a_result_replaces_only_the_one_of_the_same_task_metric_and_setting(folder: Path) -> None:
    add_evaluation(folder, [result("arc", 0.1, num_fewshot=0, stderr=0.5), result("arc", 0.2, num_fewshot=5)])
    assert add_evaluation(folder, [result("arc", 0.3, num_fewshot=0, stderr=0.01), result("piqa", 0.4)])

    card = ModelCard.load(folder / "README.md")

    assert sorted(r.metric_value for r in card.data.eval_results) == [0.2, 0.3, 0.4]
    assert "| arc | acc | 0.3 ± 0.01 | num_fewshot=0 |" in card.text
    assert card.text.count("## Evaluation") == 1


def test_a_card_of_the_user_is_left_alone(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine")

    assert not add_training(folder, "python train.py", {"Data": "text"})
    assert not add_evaluation(folder, [result("arc", 0.1)])
    assert (folder / "README.md").read_text() == "---\nlicense: mit\n---\nmine"


VALUES = {
    "a float of numpy": (np.float64(0.25), 0.25),
    "a small float of numpy": (np.float32(0.5), 0.5),
    "a whole number of numpy": (np.int64(3), 3),
    "a truth value of numpy": (np.bool_(True), True),
    "a tensor": (torch.tensor(2.0), 2.0),
    "an array": (np.arange(2), [0, 1]),
    "a tuple": ((1, "b"), [1, "b"]),
    "no number": (math.nan, "NaN"),
    "no number of numpy": (np.float32("nan"), "NaN"),
    "infinity": (math.inf, "Infinity"),
    "less than anything": (-math.inf, "-Infinity"),
    "a date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "a path": (Path("runs/mine"), "runs/mine"),
    "a dtype": (torch.bfloat16, "torch.bfloat16"),
    "a strategy": (IntervalStrategy.STEPS, "steps"),
    "a dictionary": ({1: {"beta": np.float32(0.5)}}, {"1": {"beta": 0.5}}),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.report(3, "values of other libraries in cards and records")
def test_any_value_is_written_so_that_a_safe_loader_reads_it(name: str, folder: Path, outcome: Callable) -> None:
    value, expected = VALUES[name]

    assert add_evaluation(folder, [result("arc", value, setting=value)])
    assert add_training(folder, "python train.py", {"Data": value}, [value])
    write_json(folder / "record.json", {"value": value})

    metadata = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    (metric,) = metadata["model-index"][0]["results"][0]["metrics"]
    outcome(repr(value), repr(metric["value"]))
    assert metric["value"] == expected and type(metric["value"]) is type(expected)
    assert metric["args"] == {"setting": expected}
    assert metadata["datasets"] == [expected]
    assert json.loads((folder / "record.json").read_text(), parse_constant=pytest.fail) == {"value": expected}
    assert add_evaluation(folder, [result("piqa", value)])
    assert len(ModelCard.load(folder / "README.md").data.eval_results) == 2


@pytest.mark.report(3, "a card that an earlier version made unreadable")
def test_a_card_that_cannot_be_read_is_left_alone_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture, in_process: Callable
) -> None:
    card = (folder / "README.md").read_text()
    broken = card.replace("---", "---\nvalue: !!python/object/apply:numpy.float64 [1]", 1)
    (folder / "README.md").write_text(broken)
    assert not add_training(folder, "python train.py", {"Data": "text"})
    assert not add_evaluation(folder, [result("arc", 0.1)])
    assert (folder / "README.md").read_text() == broken
    assert "README.md stays as it is" in caplog.text
    done = in_process("scripts/push_to_hub.py", folder, "somebody/model", "--dry_run")
    assert done.returncode == 1 and "README.md cannot be read" in done.stderr and "Traceback" not in done.stderr
