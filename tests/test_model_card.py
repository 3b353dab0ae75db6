# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The card that a saved model carries says what is true and survives what is quoted into it."""

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from transformers import AutoModelForSequenceClassification

from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM
from modeling_hc.model_card_hc import add_evaluation, add_training

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}


def result(task: str, value: float, **setting: int) -> EvalResult:
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
