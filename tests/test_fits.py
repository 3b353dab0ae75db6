# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""campaigns/fits.py tells architectures that hyper-connections fit from those that only look so."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from campaigns import fits
from modeling_hc.configuration_hc import families

KNOWN: dict[str, dict[str, Any]] = {
    "olmo2": {"verdict": fits.OURS, "like": "olmo2"},
    "phi3": {"verdict": fits.AS_IS, "like": "qwen3", "overrides": []},
    "qwen2_moe": {"verdict": fits.AS_IS, "like": "mixtral", "overrides": []},
    "starcoder2": {"verdict": fits.FEW_LINES, "overrides": ["hyper_connection_norm", "output_projections"]},
    "gemma2": {"verdict": fits.FEW_LINES, "like": "gemma3"},
    "gpt2": {"verdict": fits.OWN_BLOCKS, "blocks": ["ln_1 → attn", "ln_2 → mlp"]},
    "gptj": {"verdict": fits.OWN_BLOCKS, "blocks": ["ln_1 → attn → mlp"]},  # parallel, so one block
    "glm4": {"verdict": fits.SOMETHING_ELSE},
    "bert": {"verdict": fits.NOT_AT_ALL},
    "gemma3n_text": {"verdict": fits.NOT_AT_ALL, "reason": "its layers pass on several streams already"},
}
WITH_THE_NAMES_OF_LLAMA = {"gemma2", "glm4"}
# Newer versions of Python warn where pytest-xdist has threads; the processes use none of them.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.mark.parametrize("model_type", KNOWN)
def test_an_architecture_whose_layer_is_known_gets_its_verdict(model_type: str) -> None:
    row = fits.survey(model_type)

    assert {name: row.get(name) for name in KNOWN[model_type]} == KNOWN[model_type]
    assert row["generates"]
    silently_wrong = isinstance(row.get("default"), float) and row["default"] > 0.1
    assert silently_wrong == (model_type in WITH_THE_NAMES_OF_LLAMA)


@forks
def test_a_model_type_that_takes_too_long_or_cannot_be_built_is_not_tried_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fits.run("llama", limit=0)["reason"] == "took over 0 s"
    monkeypatch.setitem(fits.OTHER_SIZES, "llama", {"num_attention_heads": 3})
    row = fits.survey("llama")
    assert row["verdict"] == fits.NOT_TRIED
    assert row["reason"].startswith("tiny model: ")


@forks
def test_the_command_resumes_and_writes_the_page_of_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output, page = tmp_path / "fits.jsonl", tmp_path / "page.md"
    arguments = ["--output", str(output), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["fits", "phi3", *arguments])
    fits.main()
    monkeypatch.setattr(sys, "argv", ["fits", *arguments])
    monkeypatch.setattr(fits, "model_types", lambda: ["phi3", "glm4"])
    fits.main()

    assert [json.loads(line)["model_type"] for line in output.read_text().splitlines()] == ["phi3", "glm4"]
    assert "phi3: fits as it is. as `modeling_hc_qwen3.py`" in capsys.readouterr().out
    text = page.read_text()
    assert "run without an error, and are wrong: `glm4`." in text
    assert "## Fits as it is: 1" in text
    assert "| as `modeling_hc_qwen3.py` | `phi3` |" in text


def test_an_unknown_model_type_is_rejected_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["fits", "lama", "--output", str(tmp_path / "fits.jsonl")])

    with pytest.raises(SystemExit):
        fits.main()

    assert "has no model type 'lama'; did you mean 'llama'? docs/architectures.md" in capsys.readouterr().err
    assert not (tmp_path / "fits.jsonl").exists()


def test_the_committed_page_knows_every_family_of_this_package() -> None:
    text = (Path(__file__).parents[1] / "docs/architectures.md").read_text(encoding="utf-8")
    section = text.split("## A family of this package")[1].split("\n## ")[0]
    assert {name for name in families() if f"`{name}`" not in section} == {"vit"}
