# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Random, malformed and extreme configurations, inputs and checkpoints, and what must come of them.

    python -m campaigns.bad_input [--examples 1500] [--checkpoints 500] [--output results/robustness/bad-input.json]

runs a long campaign, which `make fuzz` starts, and prints how many were tried and what came of them. It ends with the
first that was neither served nor rejected. tests/test_bad_input.py runs a short one, the same every time.
"""

import argparse
import copy
import json
import pickle
import platform
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

import modeling_hc
from modeling_hc.conversion import ConversionError, to_residual

FAMILIES = ("Llama", "Mistral", "Olmo", "Olmoe")
SIZES: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}


def config_class(family: str, hyper_connected: bool = True) -> type[PreTrainedConfig]:
    return getattr(modeling_hc, f"HC{family}Config") if hyper_connected else getattr(transformers, f"{family}Config")


def sizes(family: str) -> dict[str, Any]:
    return SIZES | (EXPERTS if family == "Olmoe" else {})


# ---- configurations ---------------------------------------------------------------------------------------------


def own_fields(family: str) -> list[str]:
    """Returns the fields that say what the model is; those of every transformers configuration are upstream's."""
    common = {field.name for field in fields(PreTrainedConfig)}
    return [field.name for field in fields(config_class(family)) if field.name not in common]


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**62, 2**200, -(2**63)]),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)
PLAUSIBLE: dict[str, st.SearchStrategy] = {
    "hidden_size": st.sampled_from([8, 16, 24, 32]),
    "intermediate_size": st.sampled_from([8, 16, 24]),
    "num_attention_heads": st.sampled_from([1, 2, 3, 4]),
    "num_key_value_heads": st.sampled_from([1, 2, 3, 4]),
    "head_dim": st.sampled_from([None, 2, 4, 5, 8]),
    "hidden_act": st.sampled_from(["silu", "gelu", "relu", "silly"]),
    "rms_norm_eps": st.sampled_from([1e-12, 1e-5, 1.0, 0.0]),
    "rope_parameters": st.dictionaries(
        st.sampled_from(["rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings"]),
        st.one_of(ANYTHING, st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope"])),
    ),
    "connection": st.sampled_from(["dynamic", "static"]),
    "stream_reduction": st.sampled_from(["sum", "mean"]),
    "output_rescaling": st.sampled_from(["divide", "multiply", "none"]),
}


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draws a family and values for a few of its fields, plausible ones and any."""
    family = draw(st.sampled_from(FAMILIES))
    names = draw(st.lists(st.sampled_from(own_fields(family)), min_size=1, max_size=4, unique=True))
    plausible = {field.name: st.booleans() for field in fields(config_class(family)) if field.type is bool}
    plausible |= {name: st.integers(1, 9) for name in own_fields(family) if "_token_id" in name or "num_" in name}
    plausible |= PLAUSIBLE
    malformed = draw(st.sampled_from([False, False, True]))
    return family, {name: draw(ANYTHING if malformed else plausible.get(name, ANYTHING)) for name in names}


def step(model: PreTrainedModel) -> list[Tensor]:
    """Trains on two short sequences, padding among them. Returns the loss and the gradients."""
    ids = torch.arange(12).view(2, 6) % model.config.vocab_size
    mask = torch.ones_like(ids).index_fill_(1, torch.tensor([0]), 0)
    loss = model.train()(ids, attention_mask=mask, labels=ids, use_cache=False).loss
    loss.backward()
    return [loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def try_configuration(example: tuple[str, dict[str, Any]]) -> str:
    """Returns what came of a configuration; fails unless a model was built and finite or a field was rejected."""
    family, values = example
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config_class(family)(**sizes(family) | values))
    except (ValueError, TypeError, StrictDataclassError) as error:
        named = [name for name in values if name in str(error)]
        assert named, f"{error!r} names none of {values}"
        return f"rejected: {named[0]}"
    try:
        results = step(model)
    except Exception as error:
        parent_values = {name: value for name, value in values.items() if name in fields_of_parent(family)}
        parent = AutoModelForCausalLM.from_config(config_class(family, False)(**sizes(family) | parent_values))
        assert refusal(lambda: step(parent)) == (type(error), str(error)), values
        return "as the residual parent: it cannot be run either"
    assert all(result.isfinite().all() for result in results), values
    return "built, forward and backward finite"


def fields_of_parent(family: str) -> set[str]:
    return {field.name for field in fields(config_class(family, False))}


def refusal(action: Callable[[], Any]) -> tuple[type[Exception], str] | None:
    try:
        action()
    except Exception as error:
        return type(error), str(error)
    return None


# ---- inputs -----------------------------------------------------------------------------------------------------


@cache
def twins(family: str) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    """Returns a residual model, the same with four streams, and one whose coefficients are far from initial."""
    torch.manual_seed(0)
    parent = AutoModelForCausalLM.from_config(config_class(family, False)(**sizes(family))).eval()
    config = config_class(family)(**sizes(family), stream_reduction="mean")
    model, trained = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    for one in (model, trained):
        one.load_state_dict(parent.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "_hc." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return parent, model, trained


@st.composite
def inputs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draws a family and what its forward is called with: empty, wrong, mixed and extreme things among it."""
    batch, length = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    shape = [batch, length]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def rarely(usual: Any, *odd: Any) -> Any:
        return draw(st.sampled_from([*[usual] * 4 * len(odd), *odd]))

    def integers(usual: tuple[int, int], *odd: tuple[int, int]) -> Tensor:
        size = rarely(shape, [batch, length + 1], [batch + 1, length], [length], [batch, 1, 1, length])
        whole = rarely(torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32)
        return torch.randint(*rarely(usual, *odd), size, generator=generator).to(whole)

    called: dict[str, Any] = {"use_cache": draw(st.sampled_from([True, False, None]))}
    if draw(st.integers(0, 4)):
        ids = torch.randint(*rarely((0, 17), (0, 1), (-3, 17), (0, 30)), shape, generator=generator)
        called["input_ids"] = ids.to(rarely(torch.int64, torch.int32, torch.uint8, torch.float32))
    else:
        scale = draw(st.sampled_from([1, 0, 1e4, 1e30, float("inf"), float("nan")]))
        embeds = scale * torch.randn(*shape, rarely(16, 15), generator=generator)
        called["inputs_embeds"] = embeds.to(rarely(torch.float32, torch.float16, torch.bfloat16, torch.float64))
    if draw(st.booleans()):
        called["attention_mask"] = integers(
            draw(st.sampled_from([(0, 2), (1, 2), (0, 1)])), (-5, 5)
        )  # some, all, none
    if draw(st.integers(0, 3)) == 0:
        called["position_ids"] = integers((0, 5), (-2, 5), (0, 99))
    if draw(st.integers(0, 2)) == 0:
        called["labels"] = integers((0, 17), (-100, -99), (0, 30))
    if draw(st.integers(0, 3)) == 0:
        called["past_key_values"] = rarely(("cache", max(batch, 1), 2), ("cache", batch + 1, 2), "cache", ())
    return draw(st.sampled_from(FAMILIES)), called


def try_input(example: tuple[str, dict[str, Any]]) -> str:
    """Returns what came of an input; fails unless the residual parent does the same with it, to the last bit."""
    family, called = example
    parent, model, trained = twins(family)
    (theirs, their_error), (ours, our_error), (other, other_error) = (
        outcome(one, parent, called) for one in (parent, model, trained)
    )
    assert our_error == their_error, called
    if theirs is None:
        assert other_error == their_error, called
        return f"both raise {their_error.__name__}"
    for name, value in theirs.items():
        assert torch.equal(ours[name].nan_to_num(), value.nan_to_num()), (name, called)
        assert torch.equal(ours[name].isnan(), value.isnan()), (name, called)
        assert other[name].isfinite().logical_or(~value.isfinite()).all(), (name, called)
    finite = all(value.isfinite().all() for value in theirs.values())
    return "equal outputs" if finite else "equal outputs, NaN or infinite in both"


@torch.no_grad()
def outcome(
    model: PreTrainedModel, parent: PreTrainedModel, called: dict[str, Any]
) -> tuple[dict[str, Tensor] | None, type[Exception] | None]:
    """Returns logits and loss of a call, or the kind of its exception."""
    called = copy.deepcopy(called)
    if isinstance(called.get("past_key_values"), tuple) and called["past_key_values"]:
        _, batch, length = called["past_key_values"]
        called["past_key_values"] = DynamicCache(config=parent.config)
        model(torch.ones(batch, length, dtype=torch.long), past_key_values=called["past_key_values"])
    try:
        result = model(**called)
    except Exception as error:
        return None, type(error)
    return {name: result[name].double() for name in ("logits", "loss") if result.get(name) is not None}, None


# ---- checkpoints ------------------------------------------------------------------------------------------------


class Intruder:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


INDEX = "model.safetensors.index.json"
DAMAGES = (
    "truncated shard",
    "bit flipped in a header",
    "bit flipped in the data",
    "missing shard",
    "tensor of another shape",
    "missing tensor",
    "index leads out of the folder",
    "index with anything in it",
    "config.json with anything in it",
    "config.json of another architecture",
    "pickle in the place of the weights",
    "pickle in the place of a shard",
    "pickle beside the weights",
    "none",
)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, float, Any]:
    """Draws how to damage a checkpoint, where in it (0 to 1), and what to write."""
    anything = st.recursive(
        ANYTHING,
        lambda inner: st.dictionaries(
            st.sampled_from(["weight_map", "metadata", "model_type", "num_streams", "x"]), inner, max_size=3
        ),
        max_leaves=4,
    )
    return draw(st.sampled_from(DAMAGES)), draw(st.floats(0, 1, exclude_max=True)), draw(anything)


def damage(folder: Path, kind: str, where: float, content: Any) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    shard = shards[int(where * len(shards))]
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # 8 bytes tell the header's length
    if kind == "truncated shard":
        shard.write_bytes(data[: int(where * len(data))])
    elif kind in ("bit flipped in a header", "bit flipped in the data"):
        low, high = (0, start) if "header" in kind else (start, len(data))
        data[low + int(where * (high - low))] ^= 1 << int(where * 1e6) % 8
        shard.write_bytes(data)
    elif kind == "missing shard":
        shard.unlink()
    elif kind in ("tensor of another shape", "missing tensor"):
        for candidate in (shard, *shards):
            shard, tensors = candidate, load_file(candidate)
            if names := sorted(tensors.keys() - {"lm_head.weight"}):  # a head may be missing, and starts anew
                break
        name = names[int(where * 1e6) % len(names)]
        tensor = tensors.pop(name)
        if kind != "missing tensor":
            tensors[name] = torch.cat([tensor, tensor])
        save_file(tensors, shard, metadata={"format": "pt"})
    elif kind == "index leads out of the folder":
        shard.rename(folder.parent / shard.name)
        name = f"../{shard.name}" if where < 0.5 else str(folder.parent / shard.name)
        (folder / INDEX).write_text((folder / INDEX).read_text().replace(shard.name, name))
    elif kind == "index with anything in it":
        (folder / INDEX).write_text(json.dumps(content))
    elif kind == "config.json with anything in it":
        (folder / "config.json").write_text(json.dumps(content))
    elif kind == "config.json of another architecture":
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"model_type": "gpt2"}))
    elif kind == "pickle in the place of the weights":
        for file in (*shards, folder / INDEX):
            file.unlink()
        torch.save({"weight": Intruder(folder.parent / "mark")}, folder / "pytorch_model.bin")
    elif kind == "pickle in the place of a shard":
        shard.write_bytes(pickle.dumps(Intruder(folder.parent / "mark")))
    elif kind == "pickle beside the weights":
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
            (folder / name).write_bytes(pickle.dumps(Intruder(folder.parent / "mark")))


@cache
def whole(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    config = config_class(family)(**sizes(family), stream_reduction="mean")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / family, max_shard_size="6KB")
    return folder / family


def try_checkpoint(folder: Path, example: tuple[str, tuple[str, float, Any]]) -> str:
    """Returns what came of a damaged checkpoint; fails unless it was rejected, or loads with what the files hold."""
    family, (kind, where, content) = example
    source, damaged, target = whole(folder, family), folder / "work" / "damaged", folder / "work" / "target"
    shutil.rmtree(folder / "work", ignore_errors=True)
    shutil.copytree(source, damaged)
    damage(damaged, kind, where, content)
    model_class = AutoModelForCausalLM._model_mapping[config_class(family)]
    loads = refusal(lambda: model_class.from_pretrained(damaged))
    converts = refusal(lambda: to_residual(damaged, target))
    assert not (folder / "work" / "mark").exists(), f"{kind} was unpickled"
    for error in filter(None, (loads, converts)):
        assert issubclass(error[0], ValueError | OSError | RuntimeError | StrictDataclassError), (kind, error)
        assert str(damaged) in error[1] or issubclass(error[0], StrictDataclassError), (kind, error)
    if converts is not None:
        assert issubclass(converts[0], ConversionError | StrictDataclassError), (kind, converts)
        assert not target.exists(), kind
    if kind in ("none", "pickle beside the weights"):
        assert loads is None and converts is None, (kind, loads, converts)
    elif kind == "bit flipped in the data":
        assert loads is None
        return f"{kind}: not seen" if converts is None else f"{kind}: rejected by the conversion only"
    elif kind not in ("bit flipped in a header", "config.json with anything in it"):
        assert loads is not None and converts is not None, (kind, loads, converts)
    return f"{kind}: {'loads' if loads is None else 'rejected'}"


# ---- the campaign -----------------------------------------------------------------------------------------------


def campaign(
    examples: int, strategy: st.SearchStrategy, attempt: Callable[[Any], str], seed: int | None = None
) -> Counter[str]:
    """Tries examples, the same ones every time for the same seed. Returns how often what came of them."""
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # the first that fails is small enough
    )
    @given(strategy)
    def run(example: Any) -> None:
        counts[attempt(example)] += 1

    (run if seed is None else hypothesis_seed(seed)(run))()
    return counts


def campaigns(folder: Path) -> dict[str, tuple[st.SearchStrategy, Callable[[Any], str]]]:
    """Returns what there is to try; checkpoints are written to a folder."""
    of_families = st.tuples(st.sampled_from(FAMILIES), damages())
    return {
        "configurations": (configurations(), try_configuration),
        "inputs": (inputs(), try_input),
        "checkpoints": (of_families, lambda example: try_checkpoint(folder, example)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=3000, help="of configurations and of inputs (3000)")
    parser.add_argument("--checkpoints", type=int, default=500, help="(500)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    quiet()
    report: dict[str, Any] = {"command": shlex.join(["python", *sys.argv])}
    report["versions"] = {"python": platform.python_version()} | {
        one.__name__: one.__version__ for one in (modeling_hc, torch, transformers)
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (strategy, attempt) in campaigns(Path(folder)).items():
            start = time.monotonic()
            examples = arguments.checkpoints if name == "checkpoints" else arguments.examples
            counts = campaign(examples, strategy, attempt, arguments.seed)
            seconds = round(time.monotonic() - start)
            report[name] = {"tried": counts.total(), "seconds": seconds, "of these": dict(counts.most_common())}
            print(f"{name}: {counts.total()} tried in {seconds} s, nothing neither served nor rejected", flush=True)
            for what, count in counts.most_common():
                print(f"{count:7}  {what}", flush=True)
            if arguments.output:
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def quiet() -> None:
    """Silences what transformers says about each odd value; one is odd on purpose."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
