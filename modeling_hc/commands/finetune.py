# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Finetunes a checkpoint, hyper-connected or not, to classify texts, with a Trainer.

    modeling-hc finetune --model_name_or_path CHECKPOINT --train_files train.csv \\
        --validation_files validation.csv --output_dir runs/classifier [--flag value ...]

Flags are the fields below and those of `transformers.TrainingArguments`. The run folder gets the classifier, its
tokenizer and card, and metrics.json. Exit status: as of `modeling-hc train`.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    BatchEncoding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ..configuration_hc import families
from ..data import read_files, read_tokenizer
from ..loading_hc import check_has_config, unreadable
from ..losses import joined
from ..records import program, write_json
from ..training import classification
from ..training.arguments import Parser
from ..training.run_folder import in_use
from ..training.safe_trainer import SafeTrainer, last_checkpoint
from . import train

logger = logging.get_logger(__name__)


@dataclass
class ClassifierArguments:
    """What to finetune, and on what."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint of a language model, or of a classifier."})
    train_files: list[str] = field(metadata={"help": "Local .csv, .tsv, .jsonl or .parquet files, as in train.py."})
    validation_files: list[str] = field(metadata={"help": "Held-out files, likewise."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    label_column: str = field(
        default="label", metadata={"help": "Column that holds the class, a name, a number or a truth value."}
    )
    max_length: int = field(default=256, metadata={"help": "Tokens of a text that are read, from its start."})


def warn(message: str) -> None:
    """Warns once, from the main process."""
    if PartialState().is_main_process:
        logger.warning(message)


def class_name(value: Any) -> str | None:
    """Returns the name of a label's class, or None if the label is missing.

    Where tables had other rows or were stored in another format, the same class is 1, 1.0 or "1", or true or "TRUE".
    """
    if value is None or value == "" or value != value:  # NaN
        return None
    text = str(value)
    return text.capitalize() if text.lower() in ("true", "false") else re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def load_rows(args: ClassifierArguments, name: str) -> Dataset:
    """Loads the rows of one split that have a text and a label, as columns `text` and `label`, the name of a class."""
    files = getattr(args, name)
    rows = read_files(name, files, [args.text_column, args.label_column])
    for column in (args.text_column, args.label_column):
        if column not in rows.column_names:
            raise ValueError(f"{name} has no column {column!r}; its columns are {rows.column_names}.")
    texts, labels = rows[args.text_column], rows[args.label_column]
    for value in texts:
        if not isinstance(value, str | None):
            raise ValueError(
                f"{name}={files} have a value of type {type(value).__name__} ({str(value)[:40]}) in text_column="
                f"{args.text_column!r}. Name the column of text with --text_column, or write its values as strings."
            )
    for value in labels:
        if isinstance(value, list | dict):
            raise ValueError(
                f"{name}={files} have a {type(value).__name__} ({str(value)[:40]}) in label_column="
                f"{args.label_column!r}, and a text is of one class. Name another column with --label_column."
            )
    pairs = [(text, class_name(label)) for text, label in zip(texts, labels, strict=True)]
    kept = [{"text": text, "label": label} for text, label in pairs if text and label is not None]
    if not kept:
        raise ValueError(
            f"{name}={files} have no row with both a text in {args.text_column!r} and a label in "
            f"{args.label_column!r}. Name their columns with --text_column and --label_column."
        )
    if len(kept) < len(pairs):
        without_text, without_label = sum(not text for text, _ in pairs), sum(label is None for _, label in pairs)
        warn(
            f"{name}: {len(pairs) - len(kept)} of {len(pairs)} rows are left out: {without_text} without a text in "
            f"{args.text_column!r}, {without_label} without a label in {args.label_column!r}."
        )
    return Dataset.from_list(kept)


def load_padding_tokenizer(name: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that pads on the right; with its end-of-text token, where it has none for padding."""
    tokenizer = read_tokenizer(name)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of model_name_or_path={name} has neither a padding nor an end-of-text token, and "
                "texts of a batch are padded. Load it, set its pad_token, and save it there with save_pretrained."
            )
        tokenizer.pad_token = tokenizer.eos_token
        warn(
            f"The tokenizer of model_name_or_path={name} has no padding token: its end-of-text token "
            f"{tokenizer.eos_token} pads, here and in the classifier's configuration."
        )
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise ValueError(
            f"The tokenizer of model_name_or_path={name} has {len(tokenizer)} tokens, more than the model's "
            f"vocab_size={config.get_text_config().vocab_size}. Save the tokenizer that the model was trained with."
        )
    return tokenizer


def prepare(args: ClassifierArguments, training_args: TrainingArguments) -> SafeTrainer:
    """Validates all inputs and builds the trainer."""
    folder = Path(training_args.output_dir)
    if in_use(folder) and not training_args.resume_from_checkpoint:
        raise ValueError(
            f"output_dir={folder} is not empty. Choose another, delete it, or go on from its last checkpoint with "
            "--resume_from_checkpoint true."
        )
    if str(training_args.resume_from_checkpoint).lower() == "true":
        training_args.resume_from_checkpoint = last_checkpoint(folder)
    set_seed(training_args.seed)
    check_has_config(args.model_name_or_path)
    try:
        config = AutoConfig.from_pretrained(args.model_name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name_or_path={unreadable(args.model_name_or_path, error)}") from error
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        known = [c.model_type for c in families().values() if c in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING]
        raise ValueError(
            f"model_name_or_path={args.model_name_or_path} is of model_type={config.model_type}, without a sequence "
            f"classification head. Give a checkpoint of {', '.join(known)}, or of a residual family that has one."
        )
    if config.model_type in families():
        warn(
            f"model_name_or_path={args.model_name_or_path} is a residual {config.model_type}, finetuned as it is. "
            "For hyper-connections, give it some first with `modeling-hc convert`."
        )
    train, held_out = load_rows(args, "train_files"), load_rows(args, "validation_files")
    labels = sorted(set(train["label"]))
    if unknown := set(held_out["label"]) - set(labels):
        raise ValueError(f"validation_files have the label {min(unknown)!r}, which train_files have not: {labels}.")
    ids = {label: i for i, label in enumerate(labels)}
    tokenizer = load_padding_tokenizer(args.model_name_or_path, config)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model_name_or_path,
        num_labels=len(labels),
        label2id=ids,
        id2label=dict(enumerate(labels)),
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        use_safetensors=True,
    )

    def collate(rows: list[dict]) -> BatchEncoding:
        texts = [row["text"] for row in rows]
        batch = tokenizer(texts, truncation=True, max_length=args.max_length, padding=True, return_tensors="pt")
        batch["labels"] = [ids[row["label"]] for row in rows]
        return batch.convert_to_tensors("pt")

    metric = evaluate.load(classification.__file__, keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        scores, references = joined(prediction.predictions), joined(prediction.label_ids)
        return metric.compute(predictions=scores.argmax(-1), references=references)

    training_args.remove_unused_columns = False  # the model reads what `collate` makes of them
    return SafeTrainer(
        model=model,
        args=training_args,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def run() -> int:
    """Finetunes, leaves the classifier in the run folder, and evaluates it. Returns the exit status."""
    try:
        parser = Parser(
            (ClassifierArguments, TrainingArguments),
            allow_abbrev=False,
            usage="%(prog)s [--FIELD VALUE ...]",
            description="Finetunes a checkpoint, hyper-connected or not, to classify texts.",
            epilog="--help-all lists every field of transformers.TrainingArguments.",
        )
        args, training_args = parser.read(sys.argv[1:])
        trainer = prepare(args, training_args)
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {error}")

    def finetune() -> None:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        if trainer.sigterm.stopped:
            return
        trainer.publish()  # before an evaluation, which may fail and with bf16_full_eval rounds the weights
        results = trainer.evaluate()
        if trainer.is_world_process_zero():
            write_json(Path(training_args.output_dir) / "metrics.json", results)
        print(results)

    return train.supervise(trainer, finetune)


def main() -> int:
    """Runs the command line in a process of its own. Returns the exit status."""
    return train.main(run)


if __name__ == "__main__":
    sys.exit(main())
