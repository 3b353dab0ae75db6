# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What `from_pretrained` accepts: whole checkpoints, in safetensors files, with the hyper-connections of the model.

A checkpoint may lack its hyper-connections, as a residual one does, or its head, unless it has something else in the
place of the head; these start at their initial values. Upstream would re-initialise any other missing tensor as well,
drop unexpected ones, and report both in a log table.
"""

import json
import re
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

# What the heads of transformers are called.
_HEADS = ("lm_head", "embed_out", "score", "classifier", "qa_outputs", "decoder")
# Parts of a network that only some of its heads have.
_OPTIONAL = {"pooler", "mask_token"}


def is_connection(name: str) -> bool:
    """Returns whether a parameter, by its name, belongs to a hyper-connection."""
    return "_hc." in name


def check_has_config(name: str | PathLike) -> None:
    """Looks whether a folder is a checkpoint at all; a name on the Hub passes.

    Raises:
        ValueError: it has no config.json.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        hint = "; merge the adapter into its model first" if (folder / "adapter_config.json").is_file() else ""
        raise ValueError(f"{name} has no {CONFIG_NAME}, so it is not a model checkpoint{hint}.")


def unreadable(name: str | PathLike, error: Exception) -> str:
    """Returns what to say of a checkpoint in the place of the Hub's error, which may not name it."""
    absent = "" if Path(name).is_dir() else ": there is no such folder, and no such model on the Hub within reach"
    return f"{name} cannot be read{absent}. ({' '.join(str(error).split())})"


def shard_names(index: Path) -> list[str]:
    """Returns the files that the index of a sharded checkpoint names, sorted.

    Raises:
        ValueError: the index is damaged, or names something else than safetensors files beside it.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"].items()  # upstream takes it for granted
        names = sorted(set(content["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is damaged or not readable ({error!r}). Download or copy it again.") from error
    if outside or not names:
        raise ValueError(
            f"{index} names {outside[0] if outside else 'nothing'!r}, and only safetensors files beside it are read. "
            "Download or copy it again, from a source that you trust."
        )
    return names


def damage(name: str | PathLike, folder: Path) -> str | None:
    """Returns why the weights in a folder cannot be read, or None where all safetensors files are whole.

    Args:
        name: of the checkpoint.
        folder: where it is, if that is a folder.
    """
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.safetensors"))
    damaged = next(filter(_is_damaged, files), None)
    if files and damaged is None:
        return None
    return (
        f"The weights of {damaged or name} cannot be read. Weights are read from safetensors files only, because "
        "pickles such as pytorch_model.bin can run code. Download or copy the checkpoint again, or, if it has other "
        "files, ask for one that save_pretrained wrote."
    )


def _is_damaged(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return False
    except (OSError, SafetensorError):
        return True


def check_fit(model: PreTrainedModel, info: dict[str, Any], where: str, ignore_mismatched_sizes: bool) -> None:
    """Rejects a checkpoint that is not whole, or whose hyper-connections are not the model's.

    Args:
        model: as upstream loaded it.
        info: upstream's loading info.
        where: the start of a sentence: which checkpoint does not fit which class.
        ignore_mismatched_sizes: accept tensors of another shape, which upstream has initialised.

    Raises:
        ValueError, RuntimeError: see `HCPreTrainedModelMixin.from_pretrained`.
    """
    keys, missing = set(model.state_dict()), set(info["missing_keys"])
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    if mismatched and not ignore_mismatched_sizes:
        key, found, expected = min(info["mismatched_keys"])
        raise RuntimeError(
            f"{where} {key} has shape {list(found)}, and the configuration asks for {list(expected)}. Load it with "
            "the fields of its own config.json, or start such tensors anew with ignore_mismatched_sizes=True."
        )
    # The connections of layers that the model does not have are left out with their layers.
    modules = dict(model.named_modules())
    foreign = [
        k
        for k in info["unexpected_keys"]
        if is_connection(k) and k.rpartition("_hc.")[0].rpartition(".")[0] in modules
    ]
    if foreign:
        field = "stream_reduction" if "head_hc." in min(foreign) else "connection"
        raise ValueError(
            f"{where} it has {min(foreign)}, for which {field}={getattr(model.config, field)!r} has no place. Load it "
            "with the fields of its own config.json."
        )
    in_model, in_none = Counter(map(_kind, keys)), Counter(map(_kind, missing))
    if lost := [key for key in missing if in_none[_kind(key)] < in_model[_kind(key)]]:
        raise ValueError(f"{where} it lacks {min(lost)}, which it has for other layers. Download or save it again.")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    network = {key for key in keys if key.startswith(prefix) and not is_connection(key)}
    optional = {key for key in network if not _OPTIONAL.isdisjoint(key.split("."))}
    if optional <= missing - mismatched:
        network -= optional
    absent = network & missing - mismatched
    if absent and absent != network:  # all of it, where another name of the network asks for that, as upstream's do
        raise ValueError(f"{where} it lacks {min(absent)}. Download or save it again.")
    if absent != network and (lost := [key for key in missing - mismatched if not is_connection(key)]):
        _check_nothing_is_left(model, lost, [k for k in info["unexpected_keys"] if _kind(k) not in in_model], where)


def _check_nothing_is_left(model: PreTrainedModel, lost: list[str], unexpected: list[str], where: str) -> None:
    """Rejects tensors without a place beside a head that would start anew, for they may be that head by another name.

    Where a new task begins, the head of the last one is left behind.
    """
    left = [key for key in unexpected if not is_connection(key)]
    if model.get_output_embeddings() is None:
        left = [key for key in left if key.partition(".")[0] not in _HEADS and _OPTIONAL.isdisjoint(key.split("."))]
    if left:
        raise ValueError(
            f"{where} it lacks {min(lost)} and has {min(left)}, for which there is no place. Load it with the class "
            "of its own architecture; to start with another head, load it without one (AutoModel) and save that."
        )


def _kind(key: str) -> str:
    """Returns the name of a parameter without the numbers of its layer and expert."""
    return re.sub(r"\.\d+\.", ".*.", key)
