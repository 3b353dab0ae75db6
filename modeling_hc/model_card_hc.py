# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The model card: the README.md that a saved model carries.

`save_pretrained` writes one into a folder that has none. Training and evaluation add their sections later, between two
comments that mark the sections' places; a card without these comments is somebody else's and is left alone.
"""

import math
import re
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.utils import logging

from .hyper_connections import CONNECTIONS, StreamModule

logger = logging.get_logger(__name__)

_AUTO_CLASSES = {
    "CausalLM": ("AutoModelForCausalLM", "text-generation"),
    "SequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "TokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "QuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "MaskedImageModeling": ("AutoModelForMaskedImageModeling", None),
}

_CITATION = """@inproceedings{zhu2025hyperconnections,
  title     = {Hyper-Connections},
  author    = {Defa Zhu and Hongzhi Huang and Zihao Huang and Yutao Zeng and Yunyao Mao and Banggu Wu and Qiyang Min
               and Xun Zhou},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2409.19606}
}"""


def plain(value: Any) -> Any:
    """Returns a value as JSON and YAML have it: text, finite numbers, booleans, None, lists and dictionaries of them.

    A YAML dumper would write a number of numpy, which metrics are, as Python code that no safe loader reads, and JSON
    has no NaN: numbers that are not finite become the texts NaN, Infinity and -Infinity, which `float` reads. Arrays
    and tuples become lists, anything else its text.
    """
    if isinstance(value, Enum):
        value = value.value
    if hasattr(value, "tolist"):  # of numpy and torch
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value)


def write_model_card(folder: str | PathLike, model: PreTrainedModel) -> None:
    """Writes the card of a model into a folder that has none.

    Args:
        folder: created if it does not exist. A README.md that is there stays as it is.
        model: a hyper-connected model.
    """
    path = Path(folder) / "README.md"
    if path.exists():
        return
    auto_class, pipeline_tag = next(
        (value for key, value in _AUTO_CLASSES.items() if type(model).__name__.endswith(key)), ("AutoModel", None)
    )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["hyper-connections", model.config.model_type],
    )
    sections = [
        _introduction(model),
        "## Use\n\n"
        + _code(_usage(auto_class, model.main_input_name), "python")
        + "\n\nWith the `modeling_hc` package installed, "
        "`import modeling_hc` takes the place of `trust_remote_code=True`.",
        _marks("training"),
        _marks("evaluation"),
        "## Citation\n\n" + _code(_CITATION, "bibtex"),
    ]
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n").save(path)


def add_training(
    folder: str | PathLike, command: str, facts: dict[str, Any], datasets: list[str] | None = None
) -> bool:
    """States in a folder's card how the model was trained; replaces what an earlier call stated.

    Args:
        folder: where `save_pretrained` left the card.
        command: the command that trained the model, quoted as it is.
        facts: what to tell, in this order: name of the fact (such as "Data" or "Tokens seen") to its value.
        datasets: names of the Hub data sets, for the card's metadata.

    Returns:
        False where the folder has no card of ours, and then nothing is changed.
    """
    card = _load(folder)
    if card is None:
        return False
    if datasets:
        card.data.datasets = plain(datasets)
    section = "## Training\n\n" + _table(["", ""], list(facts.items())) + "\n\n" + _code(command, "bash")
    return _replace(card, "training", section, folder)


def add_evaluation(folder: str | PathLike, results: list[EvalResult]) -> bool:
    """Adds results to a folder's card, as a table and as the Hub's `model-index`.

    Args:
        folder: where `save_pretrained` left the card.
        results: one for each task and metric. `metric_args` says how it was measured, such as `num_fewshot` and
            `limit`, and may hold the `stderr`. A result replaces an earlier one of the same task, metric and
            `metric_args` (but for `stderr`); the others stay.

    Returns:
        False where the folder has no card of ours, and then nothing is changed.
    """
    card = _load(folder)
    if card is None:
        return False
    results = [EvalResult(**plain(vars(result))) for result in results]
    merged = {_measurement(result): result for result in [*(card.data.eval_results or []), *results]}
    card.data.eval_results = list(merged.values())
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    rows = []
    for result in merged.values():
        setting = dict(result.metric_args or {})
        stderr = setting.pop("stderr", None)
        value = _number(result.metric_value) + (f" ± {_number(stderr)}" if stderr is not None else "")
        rows.append(
            (result.dataset_name, result.metric_type, value, ", ".join(f"{k}={v}" for k, v in setting.items()))
        )
    section = "## Evaluation\n\n" + _table(["Task", "Metric", "Value", "Setting"], rows)
    return _replace(card, "evaluation", section, folder)


def _introduction(model: PreTrainedModel) -> str:
    config = model.config
    variant = f"{CONNECTIONS[config.connection].label}x{config.num_streams}"
    whole = config.stream_size == config.hidden_size
    streams = f"{config.num_streams} {'residual streams' if whole else 'fractions of the residual stream'}"
    if config.connection in ("dynamic", "frac") and not config.use_tanh:
        variant += " W/O tanh"
    in_connections = sum(p.numel() for m in model.modules() if isinstance(m, StreamModule) for p in m.parameters())
    facts = [
        ("Architecture", f"`{type(model).__name__}`: `{config.parent_model_type}` with hyper-connections"),
        ("Variant", f"{variant} ({config.connection}, {streams})"),
        ("Streams reduced by", config.stream_reduction if whole else "concatenation"),
        ("Layers, hidden size", f"{config.num_hidden_layers}, {config.hidden_size}"),
        ("Vocabulary", f"{config.vocab_size:,}")
        if hasattr(config, "vocab_size")
        else ("Image size, patch size", f"{config.image_size}, {config.patch_size}"),
        ("Parameters", f"{model.num_parameters():,}, of which {in_connections:,} in hyper-connections"),
    ]
    return (
        f"# {config.parent_model_type} with hyper-connections, {variant}\n\n"
        f"A Transformer whose residual connections are [hyper-connections](https://arxiv.org/abs/2409.19606): each "
        f"attention and MLP block reads from and writes to {streams} with learned weights.\n\n"
        + _table(["", ""], facts)
    )


def _usage(auto_class: str, main_input: str) -> str:
    processor, variable = (
        ("AutoTokenizer", "tokenizer") if main_input == "input_ids" else ("AutoImageProcessor", "processor")
    )
    tail = f"""
name = "..."  # this folder, or its repository on the Hub
{variable} = {processor}.from_pretrained(name, trust_remote_code=True)
model = {auto_class}.from_pretrained(name, trust_remote_code=True)"""
    if auto_class == "AutoModelForCausalLM":
        tail += """
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""
    if auto_class == "AutoModelForImageClassification":
        tail += """
inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])"""
    imports = f"from transformers import {', '.join(sorted((auto_class, processor)))}\n"
    return ("from PIL import Image\n" if "Image.open" in tail else "") + imports + tail


def _load(folder: str | PathLike) -> ModelCard | None:
    path = Path(folder) / "README.md"
    try:
        card = ModelCard.load(path) if path.exists() else None
    except Exception as error:  # what YAML raises is of a package that this file does not import
        reason = " ".join(str(error).split())
        logger.warning(
            f"{path} stays as it is, for the YAML at its head cannot be read: {reason}. Mend it, or delete it."
        )
        return None
    return card if card is not None and "<!-- training -->" in card.text else None


def _replace(card: ModelCard, name: str, section: str, folder: str | PathLike) -> bool:
    before, start, rest = card.text.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not end:
        return False
    card.text = f"{before}{start}\n{section}\n{end}{after}"
    card.save(Path(folder) / "README.md")
    return True


def _marks(name: str) -> str:
    return f"<!-- {name} -->\n<!-- /{name} -->"


def _measurement(result: EvalResult) -> tuple:
    setting = {key: value for key, value in (result.metric_args or {}).items() if key != "stderr"}
    return result.dataset_type, result.metric_type, str(sorted(setting.items()))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: list[str], rows: list[tuple]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"([\\|*\[])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _code(text: str, language: str) -> str:
    """A fence longer than any in the text, so that the text cannot end it; nor can it pass for a section's mark."""
    text = text.replace("<!--", "<! --")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
