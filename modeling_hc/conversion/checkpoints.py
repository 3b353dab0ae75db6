# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders: from a residual checkpoint to a hyper-connected one with the same outputs, and back.

A hyper-connected model keeps its parent's parameter names, so a residual checkpoint becomes a hyper-connected one by
adding files: the shards are copied as they are, and one more holds the hyper-connections at their initial values. No
weight passes through a model, so the size of a checkpoint does not matter.

The target is written under another name beside its own, `TARGET.converting-PID`, verified there, and renamed last. It
is removed if anything goes wrong; what a killed process leaves, the next conversion to the same target removes.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration_hc import HyperConnectionConfigMixin, families
from ..hyper_connections import StreamModule
from ..loading_hc import is_connection, shard_names

# What belongs to a model beside its weights, configuration, code and card. Anything else, such as the optimizer of a
# training run, stays behind.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "tekken.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


_WEIGHT_DTYPES = {"F64", "F32", "F16", "BF16"}


class ConversionError(ValueError):
    """A checkpoint cannot be converted. The message says why and what to do; nothing was written."""


class _Checkpoint(NamedTuple):
    """A checkpoint folder that was found to be whole.

    Args:
        folder: where it lies.
        shards: the names of the tensors by weight file.
        auto_class: its class in transformers, such as `AutoModelForCausalLM`.
        model: the hyper-connected model of this checkpoint, on the meta device.
        ignored: the names of the tensors that the model does not have and passes over.
    """

    folder: Path
    shards: dict[str, list[str]]
    auto_class: Any
    model: PreTrainedModel
    ignored: set[str]


def to_hyper_connected(
    source: str | os.PathLike, target: str | os.PathLike, revision: str | None = None, **hc_fields: Any
) -> str:
    """Converts a residual checkpoint to a hyper-connected one that computes the same function.

    Args:
        source: a folder with safetensors weights, or the name of a model on the Hub. It is only read.
        target: the folder to create.
        revision: branch, tag or commit of a model on the Hub.
        **hc_fields: fields of `HyperConnectionConfigMixin`. `stream_reduction` is "mean" by default, which
            makes the outputs exactly the parent's; with "sum" they are so up to the eps of the final norm.

    Returns:
        What was verified, in a sentence.

    Raises:
        ConversionError: the checkpoint is not supported, not whole or not readable, or the target exists.
        OSError: writing failed, as on a full disk.

    Source: Section 2.3 of arXiv 2409.19606: at initialisation, hyper-connections are Pre-Norm residual connections.
    """
    target = _absent(target, source)
    checkpoint = _open(_local(source, revision), hyper_connected=False, **{"stream_reduction": "mean"} | hc_fields)
    _require_memory(checkpoint)
    with _written_whole(target, checkpoint) as folder:
        checkpoint.model.save_pretrained(folder, state_dict=_initial_values(checkpoint.model))
        _copy_weights(checkpoint, folder)
        _copy_companions(checkpoint.folder, folder)
        _keep_tokenizer(source, revision, folder)
        return _verify(checkpoint, folder, hyper_connected=True)


def to_residual(source: str | os.PathLike, target: str | os.PathLike, revision: str | None = None) -> str:
    """Converts a hyper-connected checkpoint to the residual one that computes the same function, where there is one.

    There is one while the coefficients have their initial values: all streams are then equal, and their mean, or
    their sum where there is only one, is the residual network's hidden state.

    Args:
        source, target, revision: see `to_hyper_connected`.

    Returns:
        What was verified, in a sentence.

    Raises:
        ConversionError: no residual checkpoint computes the same function, and see `to_hyper_connected`.
        OSError: writing failed, as on a full disk.
    """
    target = _absent(target, source)
    checkpoint = _open(_local(source, revision), hyper_connected=True)
    _require_residual_function(checkpoint)
    with _written_whole(target, checkpoint) as folder:
        _parent_config(checkpoint.model.config).save_pretrained(folder)
        _copy_weights(checkpoint, folder)
        _copy_companions(checkpoint.folder, folder)
        _keep_tokenizer(source, revision, folder)
        return _verify(checkpoint, folder, hyper_connected=False)


def _absent(target: str | os.PathLike, source: str | os.PathLike) -> Path:
    target = Path(target).absolute()
    if os.path.lexists(target):  # a symbolic link to nothing is in the way, too
        raise ConversionError(f"{target} exists and is never overwritten: remove it or choose another target.")
    if Path(source).is_dir() and target.resolve().is_relative_to(Path(source).resolve()):
        raise ConversionError(f"{target} lies in the source, which is only read: choose a target outside {source}.")
    above = next(path for path in target.parents if os.path.lexists(path))
    if not above.is_dir():
        raise ConversionError(f"{target} cannot be created, for {above} is not a folder: choose another target.")
    return target


def _local(source: str | os.PathLike, revision: str | None) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise ConversionError(f"{source} is a file: name the folder that holds it and its {CONFIG_NAME}.")
    if str(source).startswith((".", "~", os.sep)) or str(source).endswith(os.sep) or str(source).count(os.sep) > 1:
        raise ConversionError(f"There is no folder {source}: name an existing one, or a model on the Hub as ORG/NAME.")
    try:
        patterns = ["*.json", "*.safetensors", *_COMPANIONS]
        return Path(
            snapshot_download(
                str(source), revision=revision, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).partition("\n")[0]
        raise ConversionError(f"{source} is neither a folder nor a model on the Hub within reach: {reason}") from error


def _open(folder: Path, hyper_connected: bool, **hc_fields: Any) -> _Checkpoint:
    """Checks everything that can be checked before any long work."""
    if not (folder / CONFIG_NAME).is_file():
        hint = "; merge the adapter into its model first" if (folder / "adapter_config.json").is_file() else ""
        raise ConversionError(f"{folder} has no {CONFIG_NAME}, so it is not a model checkpoint{hint}.")
    config_dict = _read_json(folder / CONFIG_NAME)
    config_class, auto_name = _classes(folder, config_dict, hyper_connected)
    if config_dict.get("quantization_config"):
        method = config_dict["quantization_config"].get("quant_method")
        raise ConversionError(
            f"{folder} is quantized (quantization_config, quant_method={method!r}). Convert the checkpoint that it "
            "was made from, then quantize the result."
        )
    shards = _shards(folder)
    _require_unquantized(folder, shards)
    auto_class = getattr(transformers, auto_name)
    config = config_class.from_pretrained(folder, **hc_fields)
    try:
        model, info = auto_class.from_pretrained(
            folder,
            config=config,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported here rather than by an error with a traceback's worth of text
        )
    except ValueError as error:
        raise ConversionError(str(error)) from error
    except RuntimeError as error:  # of weights of experts that cannot be joined
        raise ConversionError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    missing = sorted(name for name in info["missing_keys"] if hyper_connected or not is_connection(name))
    misshapen = sorted(info["mismatched_keys"])
    if missing or misshapen:
        first = f"{missing[0]} is missing" if missing else ""
        if not missing:
            name, found, expected = misshapen[0]
            first = f"{name} has shape {list(found)} in the file and {list(expected)} by {CONFIG_NAME}"
        count = len(missing) + len(misshapen)
        raise ConversionError(
            f"{folder} is not a whole checkpoint of {type(model).__name__}: {count} "
            f"{'tensor is' if count == 1 else 'tensors are'} missing or of another shape than {CONFIG_NAME} says"
            f"{':' if count == 1 else '; the first:'} {first}. Download or save the checkpoint again."
        )
    surplus = sorted(info["unexpected_keys"])
    heads = [name for name in surplus if name.startswith(("score.", "qa_outputs."))]
    if heads and not config_dict.get("architectures"):
        example = type(model).__name__.removeprefix("HC").replace("CausalLM", "SequenceClassification")
        raise ConversionError(
            f"{folder} has {heads[0]}, the head of another model than the causal language model that it is taken for, "
            f'because {CONFIG_NAME} has no architectures. Write into it what it is, such as "architectures": '
            f'["{example}"].'
        )
    of_layers = [name for name in surplus if "layers" in name.split(".")]
    if of_layers:
        raise ConversionError(
            f"{folder} has {of_layers[0]}, for which there is no place by {CONFIG_NAME} "
            f"(num_hidden_layers={model.config.num_hidden_layers}): it does not belong to these weights. Download or "
            "save the checkpoint again."
        )
    # Upstream does not report these, which old checkpoints have.
    buffers = {name for names in shards.values() for name in names if name.endswith("rotary_emb.inv_freq")}
    return _Checkpoint(folder, shards, auto_class, model, buffers.union(surplus))


def _classes(folder: Path, config_dict: dict, hyper_connected: bool) -> tuple[type[PreTrainedConfig], str]:
    """Returns the hyper-connected configuration class of a checkpoint and the name of its Auto class."""
    # Conversion compares outputs on tokens, so it takes no ViT; `hyper_connect` does.
    of_text = [family for family in families().values() if "AutoModelForCausalLM" in family.auto_classes]
    by_type = {c.model_type if hyper_connected else c.parent_model_type: c for c in of_text}
    model_type = config_dict.get("model_type")
    if not isinstance(model_type, str) or model_type not in by_type:
        if any(model_type == family.model_type for family in of_text):
            raise ConversionError(
                f"{folder} is hyper-connected already (model_type={model_type!r}). `--reverse` makes it residual; to "
                "change its fields, give them to `from_pretrained` and save what it loads."
            )
        raise ConversionError(
            f"{folder} has model_type={model_type!r}. Conversion {'back ' if hyper_connected else ''}takes "
            f"{', '.join(sorted(by_type))}."
        )
    names = {path.rpartition(".")[2]: auto for auto, path in by_type[model_type].auto_classes.items()}
    architecture = (config_dict.get("architectures") or [None])[0]
    if architecture is None:  # as AutoModelForCausalLM takes it
        return by_type[model_type], "AutoModelForCausalLM"
    hc_architecture = architecture if hyper_connected else f"HC{architecture}"
    if hc_architecture not in names:
        known = ", ".join(n if hyper_connected else n.removeprefix("HC") for n in names if not n.endswith("Config"))
        raise ConversionError(f"{folder} has architectures={[architecture]!r}; of {model_type!r} there are {known}.")
    return by_type[model_type], names[hc_architecture]


def _shards(folder: Path) -> dict[str, list[str]]:
    """Returns the names of the tensors in each of a folder's weight files, in the order of the files."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        files = [SAFE_WEIGHTS_NAME]
    elif index.is_file():
        try:
            files = shard_names(index)
        except ValueError as error:
            raise ConversionError(str(error)) from error
    elif any(folder.glob("model*.safetensors")):
        raise ConversionError(
            f"{folder} has weight files and lacks {SAFE_WEIGHTS_INDEX_NAME}, which lists them. Copy it as well."
        )
    else:
        raise ConversionError(
            f"{folder} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}. Weights in another format, such "
            "as pytorch_model.bin, are written as safetensors by loading the model with transformers and calling its "
            "save_pretrained."
        )
    shards = {}
    for file in files:
        try:
            with safe_open(folder / file, "pt") as shard:
                shards[file] = list(shard.keys())
        except (OSError, SafetensorError) as error:
            raise ConversionError(
                f"{folder / file} is missing or damaged ({error}). Download or copy it again."
            ) from error
    return shards


def _require_unquantized(folder: Path, shards: dict[str, list[str]]) -> None:
    for shard, names in shards.items():
        with safe_open(folder / shard, "pt") as file:
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _WEIGHT_DTYPES:
                    raise ConversionError(
                        f"{folder} looks quantized: {name} is stored as {dtype}, and weights are "
                        f"{', '.join(sorted(_WEIGHT_DTYPES))}. Convert the checkpoint that it was made from, then "
                        "quantize the result."
                    )


def _require_memory(checkpoint: _Checkpoint) -> None:
    needed, free = _added_size(checkpoint), psutil.virtual_memory().available
    if needed > free:
        raise ConversionError(
            f"num_streams={checkpoint.model.config.num_streams} adds hyper-connections of {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free. Choose fewer streams; the paper uses 4 by default."
        )


def _added_size(checkpoint: _Checkpoint) -> int:
    return sum(value.nbytes for name, value in checkpoint.model.named_parameters() if is_connection(name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
        return content
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is damaged or not readable ({error}). Download or copy it again.") from error


def _initial_values(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        if isinstance(module, StreamModule)
        for name, value in module.initial_values().items()
    }


def _require_residual_function(checkpoint: _Checkpoint) -> None:
    config = checkpoint.model.config
    shard_of = {name: shard for shard, names in checkpoint.shards.items() for name in names}
    for name, initial in _initial_values(checkpoint.model).items():
        # While the dynamic weights are zero, neither the gates nor the norm have any effect.
        if name.endswith(("scale", ".norm")):
            continue
        with safe_open(checkpoint.folder / shard_of[name], "pt") as file:
            value = file.get_tensor(name).to(initial.dtype)
        if not torch.equal(value, initial):
            raise ConversionError(
                f"{checkpoint.folder} was trained: {name} differs from its initial value by up to "
                f"{(value - initial).abs().max():.2g}, and no residual checkpoint computes the same function."
            )
    if not _closes_exactly(config):
        raise ConversionError(
            f"{checkpoint.folder} closes {config.num_streams} streams by their sum (stream_reduction='sum'), so its "
            "final norm sees the residual network's hidden state times that number, and adds its eps to another mean "
            f"square: no residual checkpoint is exactly equal. If that difference is of no account, set "
            f"stream_reduction to 'mean' in a copy of its {CONFIG_NAME} and convert the copy."
        )


def _closes_exactly(config: PreTrainedConfig) -> bool:
    """Returns whether equal streams, or fractions, close to the residual network's hidden state itself."""
    return config.stream_reduction != "sum" or config.num_streams == 1 or config.stream_size < config.hidden_size


def _parent_config(config: PreTrainedConfig) -> PreTrainedConfig:
    added = {field.name for field in fields(HyperConnectionConfigMixin)} | {"auto_map", "model_type"}
    values = {name: value for name, value in config.to_dict().items() if name not in added}
    values["architectures"] = [name.removeprefix("HC") for name in config.architectures or ()] or None
    return CONFIG_MAPPING[config.parent_model_type].from_dict(values)


@contextmanager
def _written_whole(target: Path, checkpoint: _Checkpoint) -> Iterator[Path]:
    """Gives a folder to write to, which becomes the target if all goes well and disappears if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{escape(target.name)}.converting-*"):
        shutil.rmtree(stale)
    needed, free = _size(checkpoint) + _added_size(checkpoint), shutil.disk_usage(target.parent).free
    if needed > free:
        raise ConversionError(
            f"{target.parent} has {free / 1e6:,.0f} MB left, the target takes {needed / 1e6:,.0f} MB."
        )
    folder = target.with_name(f"{target.name}.converting-{os.getpid()}")
    try:
        folder.mkdir()
        yield folder
        for path in folder.iterdir():
            path.chmod((folder / CONFIG_NAME).stat().st_mode)  # safetensors hides from others what it writes
        for path in [*folder.iterdir(), folder]:
            _sync(path)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(checkpoint: _Checkpoint) -> int:
    return sum((checkpoint.folder / shard).stat().st_size for shard in checkpoint.shards)


def _progress(what: str, checkpoint: _Checkpoint) -> tqdm:
    return tqdm(desc=what, total=_size(checkpoint), unit="B", unit_scale=True, disable=None)


def _copy_weights(source: _Checkpoint, folder: Path) -> None:
    """Copies the residual network's weights beside the hyper-connections, where `save_pretrained` left any."""
    kept = {shard: [name for name in names if not is_connection(name)] for shard, names in source.shards.items()}
    shards = [shard for shard, names in kept.items() if names]
    added = folder / SAFE_WEIGHTS_NAME
    count = len(shards) + added.exists()
    targets = [folder / f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if count == 1:
        targets = [folder / SAFE_WEIGHTS_NAME]
    if added.exists():
        added.rename(targets.pop())
    with _progress("Copying", source) as bar:
        for shard, target in zip(shards, targets, strict=True):
            if kept[shard] == source.shards[shard]:
                with open(source.folder / shard, "rb") as file, open(target, "wb") as copy:
                    shutil.copyfileobj(CallbackIOWrapper(bar.update, file), copy, 2**24)
            else:
                with safe_open(source.folder / shard, "pt") as file:  # memory-mapped, so it need not fit in memory
                    save_file({name: file.get_tensor(name) for name in kept[shard]}, target, file.metadata())
    if count > 1:
        _write_index(folder)


def _write_index(folder: Path) -> None:
    weight_map: dict[str, str] = {}
    total_size = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            weight_map |= dict.fromkeys(file.keys(), path.name)
        with open(path, "rb") as file:  # 8 bytes tell the header's length, then come header and data
            total_size += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _copy_companions(source: Path, folder: Path) -> None:
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _keep_tokenizer(source: str | os.PathLike, revision: str | None, folder: Path) -> None:
    """Makes AutoTokenizer find in the target what it finds in the source.

    By what it chooses a class depends on the model type, which has changed, so the class is named in the target. Where
    transformers also mends a tokenizer by model type, the mended one is saved.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception:  # there is none, or it cannot be loaded from the source either; each kind has its own exception
        return
    path = folder / TOKENIZER_CONFIG_FILE
    values = _read_json(path) if path.is_file() else {}
    if "auto_map" in values:
        return
    name = type(tokenizer).__name__
    # Where mistral-common is not installed, the parent's is the other.
    values["tokenizer_class"] = "TokenizersBackend" if name == "MistralCommonBackend" else name
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if _state(tokenizer) != _state(AutoTokenizer.from_pretrained(folder)):
        tokenizer.save_pretrained(folder)


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(tokenizer).__name__, backend and backend.to_str()


def _verify(source: _Checkpoint, folder: Path, hyper_connected: bool) -> str:
    """Checks that the target is whole, holds the source's weights, and computes the same where that can be tried."""
    target = _open(folder, hyper_connected)
    count = _verify_tensors(source, target)
    told = f"All {count} tensors of the residual network are there bit for bit"
    if source.ignored:
        told += f" (beside {len(source.ignored)} that the model passes over, such as {min(source.ignored)})"
    # A model takes about its weights; the rest is for what else is alive meanwhile.
    needed, free = 1.5 * _size(source), psutil.virtual_memory().available
    if needed > free:
        return f"{told}; the outputs were not compared ({needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free)."
    return f"{told}; the outputs differ by {_verify_outputs(source, target):.1e} of the largest."


def _verify_tensors(source: _Checkpoint, target: _Checkpoint) -> int:
    copy_of: dict[str, Any] = {}
    for shard, names in target.shards.items():
        copy_of |= dict.fromkeys(names, safe_open(target.folder / shard, "pt"))
    count = 0
    with _progress("Verifying", source) as bar:
        for shard, names in source.shards.items():
            with safe_open(source.folder / shard, "pt") as file:
                for name in names:
                    if is_connection(name):
                        continue
                    tensor = file.get_tensor(name)
                    if not _same_bits(tensor, copy_of[name].get_tensor(name)):
                        raise OSError(f"{name} did not arrive on the disk as it is in {source.folder / shard}")
                    bar.update(tensor.nbytes)
                    if name in source.ignored:
                        continue
                    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
                        raise ConversionError(
                            f"{name} in {source.folder / shard} has NaN or infinite values: the checkpoint is "
                            "damaged, or its training diverged. Download it again or take an earlier one."
                        )
                    count += 1
    return count


def _same_bits(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


@torch.no_grad()
def _verify_outputs(source: _Checkpoint, target: _Checkpoint) -> float:
    """Returns the largest difference of the outputs on random tokens, relative to the largest output."""
    config = source.model.config
    tokens = torch.randint(config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    # One after the other, so that only one has to fit in memory.
    before, after = (c.auto_class.from_pretrained(c.folder)(tokens)[0].double() for c in (source, target))
    if not before.isfinite().all():
        raise ConversionError(
            f"The outputs of {source.folder} itself are NaN or infinite on random tokens in {source.model.dtype}: the "
            "checkpoint is damaged, its training diverged, or it needs another dtype."
        )
    difference = ((before - after).abs().max() / before.abs().max().clamp(min=1e-300)).item()
    if _closes_exactly(config) and not difference <= 16 * torch.finfo(source.model.dtype).eps:
        raise ConversionError(
            f"The outputs of source and target differ by {difference:.1e} of the largest on random tokens, and should "
            "not: this checkpoint is not supported. Please report it."
        )
    return difference
