# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What `modeling-hc train` leaves in the folder of a run, and when it may use a folder."""

import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..model_card_hc import add_training
from ..records import command_line, versions, write_json
from .safe_trainer import last_checkpoint

matplotlib.use("Agg")
from matplotlib import pyplot


def check_folder(model_args: Any, data_args: Any, args: TrainingArguments) -> None:
    """Rejects a folder that is in use, unless it holds the run to resume; finds the checkpoint to resume from.

    A run that ended before its first checkpoint is resumed from its beginning. The arguments are dataclasses.

    Raises:
        ValueError: the folder is in use, read-only, has nothing to resume, or holds a run of another model or on other
            data.
    """
    folder = Path(args.output_dir)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):  # os.access says yes to root
            pass
    except OSError as error:
        raise ValueError(
            f"output_dir={args.output_dir} cannot be written: {there} is no folder, or read-only ({error.strerror}). "
            "Choose another."
        ) from error
    content = in_use(folder)
    started = (folder / "run.json").exists()
    asked = str(args.resume_from_checkpoint or "false")
    resume: str | None = asked
    again = False
    if asked.lower() == "true":
        resume = last_checkpoint(folder)
        if resume is None and folder.exists() and (started or not content):
            resume, again = "", True
    elif asked.lower() == "false":
        resume = ""
    if resume is None or (resume and not Path(resume).is_dir()):
        raise ValueError(
            f"resume_from_checkpoint={args.resume_from_checkpoint} finds no checkpoint in output_dir="
            f"{args.output_dir}. Leave it out to start a new run."
        )
    if resume:
        try:
            json.loads((Path(resume) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{resume} cannot be resumed: its {TRAINER_STATE_NAME} is missing or damaged ({error}). Delete it to "
                "go on from the checkpoint before it."
            ) from error
    args.resume_from_checkpoint = resume or None
    own = again or (bool(resume) and Path(resume).resolve().parent == folder.resolve())
    if resume and not own:
        raise ValueError(
            f"resume_from_checkpoint={resume} is not in output_dir={args.output_dir}, and only the run in it can be "
            "resumed. To start a new run from that model, give it as model_name_or_path, without config and "
            "resume_from_checkpoint."
        )
    if args.process_index == 0 and not own and content:
        raise ValueError(
            f"output_dir={args.output_dir} is not empty. Choose another, delete it, or resume the run in it with "
            "resume_from_checkpoint=true."
        )
    if own and started:
        recorded = json.loads((folder / "run.json").read_text(encoding="utf-8"))["configuration"]
        for name, value in (asdict(model_args) | asdict(data_args)).items():
            if name in recorded and recorded[name] != value:
                raise ValueError(
                    f"The run in output_dir={args.output_dir} was started with {name}={recorded[name]} and cannot be "
                    f"resumed with {name}={value}. Give the same value, or choose another output_dir."
                )


def in_use(folder: Path) -> list[Path]:
    """Returns what is in a folder, but for what is left there of a run that was killed, or that came to no step.

    The first has a name with an underscore, the second is the empty log of TensorBoard.
    """
    started = (folder / "run.json").exists()
    content = folder.iterdir() if folder.exists() else []
    return [path for path in content if path.name[0] != "_" and (started or path.name != "runs")]


class RecordRun(TrainerCallback):
    """Writes run.json after the first step: a start that failed before leaves nothing that blocks the next one."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        self.run = run
        self.written = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and not self.written:
            write_json(self.folder / "run.json", self.run)
            self.written = True


def describe_run(model_args: Any, data_args: Any, args: TrainingArguments) -> dict[str, Any]:
    """Returns the command, versions and configuration of this run."""
    packages = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "evaluate")
    return {
        "command": command_line(args.world_size),
        "versions": versions(*packages) | {"platform": platform.platform()},
        "processes": args.world_size,
        "configuration": asdict(model_args) | asdict(data_args) | args.to_dict(),
    }


def earlier_commands(folder: Path) -> list[str]:
    """Returns the commands of the run that is resumed in a folder."""
    if not (folder / "run.json").exists():
        return []
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record.get("commands") or [record["command"]]


def plot_loss(history: list[dict[str, float]], tokens_per_step: int, path: Path) -> None:
    """Draws training and held-out loss over the tokens seen."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"] * tokens_per_step, entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)", title=path.parent.name.replace("$", r"\$"))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def published_step(trainer: Trainer) -> int:
    """Returns the step whose weights a trained model has: the last, unless load_best_model_at_end loaded the best."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return int(best.rpartition("-")[2]) if best else trainer.state.global_step


def evaluation_at(trainer: Trainer, step: int) -> dict[str, float]:
    """Returns what the evaluation after a step found, the last one if there were several; {} if there was none."""
    found: dict[str, float] = {}
    for entry in trainer.state.log_history:
        if entry["step"] == step:
            found |= {key: value for key, value in entry.items() if key.startswith("eval_")}
    return found


def finish(folder: Path, run: dict[str, Any], trainer: Trainer) -> None:
    """Writes what is known after training: run.json, log_history.json, loss.png and the card's training section."""
    history, args = trainer.state.log_history, trainer.args
    tokens_per_step = trainer.get_total_train_batch_size(args) * run["configuration"]["block_size"]
    step, steps = published_step(trainer), trainer.state.global_step
    results = evaluation_at(trainer, step)
    run |= {"steps": steps, "tokens_seen": steps * tokens_per_step, "published_step": step, "results": results}
    write_json(folder / "run.json", run)
    write_json(folder / "log_history.json", history)
    plot_loss(history, tokens_per_step, folder / "loss.png")
    configuration = run["configuration"]
    facts = {
        "Started from": configuration["model_name_or_path"],
        "Data": configuration["dataset_name"]
        or configuration["train_files"]
        or "the source of Python's standard library",
        "Tokens seen": f"{run['tokens_seen']:,}",
        "Steps": f"{run['steps']:,}" + (f"; these are the weights after step {step:,}" if step != steps else ""),
        "Held-out loss": results.get("eval_loss"),
        "Held-out bits per byte": results.get("eval_bits_per_byte"),
    }
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    facts = {name: value for name, value in facts.items() if value is not None} | {"Versions": versions}
    dataset = configuration["dataset_name"]
    add_training(folder, run["command"], facts, [dataset] if dataset else None)
