# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Finetunes a checkpoint, hyper-connected or not, to classify texts, with the stock Trainer.

    python scripts/finetune_classifier.py --model_name_or_path CHECKPOINT --train_files train.csv \\
        --validation_files validation.csv --output_dir runs/classifier [--flag value ...]

Flags are the fields below and those of `transformers.TrainingArguments`. The run folder gets the classifier, its
tokenizer and card, and metrics.json.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from run_folder import write_json
from train_arguments import Parser
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    BatchEncoding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

import modeling_hc  # noqa: F401  registers the models
from modeling_hc.data import load_tokenizer


@dataclass
class ClassifierArguments:
    """What to finetune, and on what."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint of a language model, or of a classifier."})
    train_files: list[str] = field(metadata={"help": "Local .csv, .jsonl or .parquet files."})
    validation_files: list[str] = field(metadata={"help": "Held-out files, likewise."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the class, a name or a number."})
    max_length: int = field(default=256, metadata={"help": "Tokens of a text that are read, from its start."})


def load_rows(args: ClassifierArguments, name: str) -> Dataset:
    """Loads the rows of one split, with the two columns that are needed; labels as strings."""
    files = getattr(args, name)
    form = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(Path(files[0]).suffix)
    if form is None or not all(Path(file).is_file() for file in files):
        raise ValueError(f"{name}={files} must be .csv, .jsonl or .parquet files that exist.")
    try:
        rows = load_dataset(form, data_files=files, split="train")
    except DatasetsError as error:
        raise ValueError(f"{name}: cannot read {files} as {form}: {error.__cause__ or error}") from error
    for column in (args.text_column, args.label_column):
        if column not in rows.column_names:
            raise ValueError(f"{name} has no column {column!r}; its columns are {rows.column_names}.")
    rows = rows.select_columns([args.text_column, args.label_column])
    for value in rows[args.text_column]:
        if not isinstance(value, str | None):
            raise ValueError(
                f"{name}={files} have a value of type {type(value).__name__} ({str(value)[:40]}) in text_column="
                f"{args.text_column!r}. Name the column of text with --text_column, or write its values as strings."
            )
    rows = rows.filter(lambda row: row[args.text_column] and row[args.label_column] is not None)
    if not len(rows):
        raise ValueError(
            f"{name}={files} have no row with both a text in {args.text_column!r} and a label in "
            f"{args.label_column!r}. Name their columns with --text_column and --label_column."
        )
    return rows


def prepare(args: ClassifierArguments, training_args: TrainingArguments) -> Trainer:
    """Does all that can fail on bad input."""
    folder = Path(training_args.output_dir)
    if folder.exists() and any(folder.iterdir()) and not training_args.resume_from_checkpoint:
        raise ValueError(
            f"output_dir={folder} is not empty. Choose another, delete it, or name a checkpoint in it with "
            "resume_from_checkpoint."
        )
    set_seed(training_args.seed)
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        families = [
            name
            for name in CONFIG_MAPPING
            if name.startswith("hc_") and CONFIG_MAPPING[name] in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        ]
        raise ValueError(
            f"model_name_or_path={args.model_name_or_path} is of model_type={config.model_type}, without a sequence "
            f"classification head. Give a checkpoint of {', '.join(families)}, or of a residual family that has one."
        )
    train, held_out = load_rows(args, "train_files"), load_rows(args, "validation_files")
    labels = sorted(map(str, train.unique(args.label_column)))
    if unknown := set(map(str, held_out.unique(args.label_column))) - set(labels):
        raise ValueError(f"validation_files have the label {min(unknown)!r}, which train_files have not: {labels}.")
    ids = {label: i for i, label in enumerate(labels)}
    tokenizer = load_tokenizer(args.model_name_or_path)
    tokenizer.padding_side = "right"
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
        texts = [row[args.text_column] for row in rows]
        batch = tokenizer(texts, truncation=True, max_length=args.max_length, padding=True, return_tensors="pt")
        batch["labels"] = [ids[str(row[args.label_column])] for row in rows]
        return batch.convert_to_tensors("pt")

    metric = evaluate.load(str(Path(__file__).with_name("classification.py")), keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions.argmax(-1), references=prediction.label_ids)

    training_args.remove_unused_columns = False  # the model reads what `collate` makes of them
    return Trainer(
        model=model,
        args=training_args,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def main() -> None:
    """Finetunes, evaluates, and leaves the classifier in the run folder."""
    try:
        args, training_args = Parser((ClassifierArguments, TrainingArguments), allow_abbrev=False).read(sys.argv[1:])
        trainer = prepare(args, training_args)
    except (ValueError, OSError) as error:
        sys.exit(f"finetune_classifier.py: {error}")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    results = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_json(Path(training_args.output_dir) / "metrics.json", results)
    print(results)


if __name__ == "__main__":
    main()
