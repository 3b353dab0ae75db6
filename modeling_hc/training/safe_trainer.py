# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A Trainer with atomic checkpoints, a graceful stop on SIGTERM, and no step on NaN.

A checkpoint is written in the folder `_unfinished` of the run, and gets its name when all of it is on the disk; what
is deleted or replaced goes there first. So a folder with the name of a checkpoint is whole whenever the process ends.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.conversion_mapping import extract_weight_conversions_for_model
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints
from transformers.utils import logging

from ..analysis import block_kinds, block_names
from ..health import stream_magnitudes
from ..hyper_connections import StreamModule

logger = logging.get_logger(__name__)

UNFINISHED = "_unfinished"
"""What is being written or deleted; what a killed run left in it is deleted when the run is resumed."""

SKIPS_IN_A_ROW = 10


def last_checkpoint(folder: Path) -> str | None:
    """Returns the last checkpoint of a run, or None where there is none, or no folder."""
    return get_last_checkpoint(folder) if folder.exists() else None


class SaveError(RuntimeError):
    """What is to be saved cannot be written: the disk is full, or the folder has become read-only."""


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite, and no step may be taken on it."""


class DataError(RuntimeError):
    """A file of the data cannot be read."""

    def __str__(self) -> str:
        """Returns the message without the traceback that a worker of the data loader puts before it."""
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class ResumeError(RuntimeError):
    """The checkpoint to resume from is damaged, or has its weights in a pickle."""


class StopOnSigterm(TrainerCallback):
    """Ends training with a checkpoint after the step in which any process receives SIGTERM.

    transformers' own `enable_jit_checkpoint` saves before the step, when dropout has already drawn its random numbers,
    and it saves on the signalled rank even if other ranks are a step behind.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked = False
        self.stopped = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *args: Any) -> None:
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.asked:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger() and state.global_step < state.max_steps:
            # An evaluation that is due takes place first: it draws a random number, which dropout would feel.
            self.stopped = control.should_save = control.should_training_stop = True


class SafeTrainer(Trainer):
    """Trains as the stock Trainer does, bit for bit, and is safe against the end of its process at any moment.

    Args:
        on_nonfinite: "stop" raises `NonFiniteError` before a step on a loss or gradients that are not finite; "skip"
            leaves out the step, with weights and optimizer as they were, unless it is one too many in a row.
        *args, **kwargs: see `transformers.Trainer`.

    Raises:
        ValueError: under DeepSpeed, steps are to be skipped, which it takes inside its engine, or it is to cast the
            parameters of hyper-connections.
    """

    def __init__(self, *args: Any, on_nonfinite: str = "stop", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if on_nonfinite == "skip" and self.is_deepspeed_enabled:
            raise ValueError("on_nonfinite=skip cannot be kept under DeepSpeed, which steps by itself; use stop.")
        if self.is_deepspeed_enabled and any(isinstance(m, StreamModule) for m in self.model.modules()):
            config = self.accelerator.state.deepspeed_plugin.hf_ds_config
            for precision in ("bf16", "fp16"):
                if config.is_true(f"{precision}.enabled"):
                    raise ValueError(
                        f"{precision}=true would have DeepSpeed cast the hyper-connections, too, whose parameters are "
                        f"fp32. Give --{precision} false, and a DeepSpeed configuration with torch_autocast, such as "
                        "configuration/accelerate/zero2.yaml."
                    )
        self.on_nonfinite = on_nonfinite
        self.skipped_in_a_row = 0
        self.losses: list[Tensor] = []
        self.saves_unfinished = False
        self.sigterm = StopOnSigterm(self.accelerator)
        self.add_callback(self.sigterm)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self.saves_unfinished else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Upstream's, in `_unfinished`, where there is nothing to rotate; then what it does at the end.

        Not after a step that was skipped: the model may be lost, and its checkpoint would push out a good one.
        """
        if self.skipped_in_a_row:
            return
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished, checkpoint = folder / UNFINISHED / name, folder / name
        with self._writing(folder, name):
            self.saves_unfinished = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.saves_unfinished = False
            if Path(self.state.best_model_checkpoint or "") == unfinished:
                self.state.best_model_checkpoint = str(checkpoint)
                if self.args.should_save:
                    self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with self._writing(folder, name):
                flush(unfinished)
                if checkpoint.exists():  # of the run from an earlier checkpoint on, which is still there
                    os.replace(checkpoint, folder / UNFINISHED / "replaced")
                os.replace(unfinished, checkpoint)
                self._rotate(folder)
                shutil.rmtree(folder / UNFINISHED)
                flush(folder, recurse=False)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(checkpoint))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Waits until the checkpoint has its name."""

    def _rotate(self, folder: Path) -> None:
        """Deletes what save_total_limit leaves no room for, but not the last checkpoint and not the best one."""
        best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
        checkpoints = sort_checkpoints(str(folder), use_mtime=True, best_model_checkpoint=best)
        if checkpoints and limit:
            kept = max(limit, len({checkpoints[-1], best or checkpoints[-1]}))
            for old in checkpoints[:-kept]:
                os.replace(old, folder / UNFINISHED / Path(old).name)

    @contextmanager
    def _writing(self, folder: Path, name: str) -> Iterator[None]:
        """Gives the room back if writing fails, and says what is lost."""
        try:
            yield
        except Exception as error:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            raise SaveError(
                f"{name} cannot be written to output_dir={folder}: {' '.join(str(error).split())}. Make room, or make "
                "the folder writable."
            ) from error

    @contextmanager
    def _reading(self, checkpoint: str | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each kind of damage has its own
            raise ResumeError(
                f"{checkpoint} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]} It is "
                "damaged, or not of this run. Delete it to go on from the checkpoint before it."
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with self._reading(resume_from_checkpoint):
            engine = self.is_fsdp_enabled or self.is_deepspeed_enabled
            if not engine and not any(Path(resume_from_checkpoint).glob("*.safetensors")):
                raise ValueError("It has no safetensors file, and weights are not read from pickles.")
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
            if not engine:
                self._load_renamed(resume_from_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Upstream's, but not of the names that `_load_renamed` then reads."""
        if not self._is_renamed():
            super()._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            self._load_renamed(str(self.state.best_model_checkpoint))

    def _load_renamed(self, checkpoint: str) -> None:
        """Loads the weights of a model whose checkpoints have other names than its parameters, as of ViT and experts.

        Upstream leaves these weights as they are, in silence.
        """
        if self._is_renamed():
            model = self.accelerator.unwrap_model(self.model)
            loaded = type(model).from_pretrained(checkpoint, config=model.config, dtype=model.dtype)
            model.load_state_dict(loaded.state_dict())

    def _is_renamed(self) -> bool:
        model = self.accelerator.unwrap_model(self.model)
        parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        return isinstance(model, PreTrainedModel) and any(map(extract_weight_conversions_for_model, parts))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def publish(self) -> None:
        """Saves the model at the top of the run folder, each file at once."""
        folder = Path(self.args.output_dir)
        unfinished = folder / UNFINISHED / "model"
        with self._writing(folder, "The model"):
            self.save_model(str(unfinished))
            if self.args.should_save:
                flush(unfinished)
                for path in unfinished.iterdir():
                    if path.is_dir():  # of a pipeline; a folder is not replaced by another
                        shutil.rmtree(folder / path.name, ignore_errors=True)
                    os.replace(path, folder / path.name)
                self._rotate(folder)  # a run that was killed after its last save, before this
                shutil.rmtree(folder / UNFINISHED)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Upstream's, but no batch for a run that is resumed after its last step, which would get one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Upstream logs a non-finite loss as 0; this marks the step as skipped."""
        if self.skipped_in_a_row and "loss" in logs:
            logs["skipped_in_a_row"] = self.skipped_in_a_row
        super().log(logs, *args, **kwargs)

    # ---- non-finite numbers -----------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Upstream's; once all gradients of a step are there, it looks whether they and the losses are finite."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses.append(loss)
        if self.accelerator.sync_gradients:
            if self._is_finite():
                self.skipped_in_a_row = 0
            else:
                self._refuse_step(inputs)
            self.losses = []
        return loss

    def _is_finite(self) -> bool:
        """Returns whether losses and gradients are finite in all processes; fp16's scaler sees to gradients itself."""
        finite = torch.stack(self.losses).isfinite().all()
        if self.accelerator.scaler is None:
            gradients = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
            finite = finite & nn.utils.get_total_norm(gradients).isfinite().to(finite.device)
        return self.accelerator.reduce(finite.logical_not().long(), "max").item() == 0

    def _refuse_step(self, inputs: dict[str, Any]) -> None:
        message = f"Step {self.state.global_step + 1} is not finite. {self._findings(inputs)}"
        self.skipped_in_a_row += 1
        if self.on_nonfinite == "stop":
            raise NonFiniteError(
                f"{message} The step was not taken. A resumed run comes to it again: lower learning_rate, or let "
                "on_nonfinite=skip leave it out."
            )
        if self.skipped_in_a_row > SKIPS_IN_A_ROW:
            raise NonFiniteError(f"{message} {SKIPS_IN_A_ROW} steps before it were skipped: the model is lost.")
        if self.accelerator.scaler is None:
            self.model.zero_grad()  # without gradients, no optimizer changes a weight or its state
        else:
            # the scaler leaves out the step by itself, but not for lack of gradients
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.fill_(torch.nan)
        if self.is_world_process_zero():
            logger.warning(f"{message} The step is skipped.")

    def _findings(self, inputs: dict[str, Any]) -> str:
        """Returns the loss of this process, which gradients are not finite, and how large the streams are."""
        loss = ", ".join(f"{loss.item():.4g}" for loss in self.losses)
        gradients = [(name, whole(p.grad)) for name, p in self.model.named_parameters() if p.grad is not None]
        bad = [(name, gradient) for name, gradient in gradients if not gradient.isfinite().all()]
        found = f"Loss: {loss}. Gradients that are not finite: {len(bad)} of {len(gradients)}"
        if bad:
            (name, gradient), last = bad[0], bad[-1][0]
            numbers = gradient.numel() - gradient.isfinite().sum().item()
            found += f", the first of {name} (in {numbers} of {gradient.numel()} numbers), the last of {last}"
        streams = []
        if hasattr(self.model, "base_model"):  # of transformers
            streams = stream_magnitudes(self.model, inputs[self.model.main_input_name])
        if not streams:
            return f"{found}."
        streams = self.accelerator.reduce(torch.tensor(streams, device=self.args.device), "max").tolist()
        names = block_names(len(streams), block_kinds(self.model))[1:-1]
        largest = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, streams, strict=True))
        return f"{found}. Largest magnitude in the streams that blocks read: {largest}."


def local(tensor: Tensor) -> Tensor:
    """Returns what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor with what the other processes hold of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def flush(folder: Path, recurse: bool = True) -> None:
    """Returns when a folder, and what is in it, is on the disk."""
    for path in [*(folder.rglob("*") if recurse else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
