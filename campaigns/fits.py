# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Says which decoder architectures of transformers hyper-connections fit, by trying them.

    python -m campaigns.fits qwen3 gemma2                       # some model types
    python -m campaigns.fits --page docs/architectures.md       # all causal language models, and the page of them

Each model type is built tiny, with random weights, and with multipliers, windows and kinds of layers away from neutral
values. Its layers get the blocks of one of our families after the other, the plainest first, and must then give the
parent's logits, hidden states and greedy tokens with a cache, for 1, 2 and 4 streams. Where none does, upstream's own
layer runs on a stand-in for the residual stream (`Tape`), which shows whether its blocks only add to the stream.

Each model type has a process and a time limit of its own. Its row goes to --output at once, where another run goes on.
"""

import argparse
import copy
import dataclasses
import inspect
import json
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modeling_hc import hyper_connections
from modeling_hc.configuration_hc import HyperConnectionConfigMixin, families
from modeling_hc.connect import become
from modeling_hc.functional_hc import close_streams, depth_connection, open_streams
from modeling_hc.modeling_hc_common import HCFinalNormMixin, HCModelMixin
from modeling_hc.modeling_hc_gemma3 import HCGemma3DecoderLayer
from modeling_hc.modeling_hc_gpt_neox import HCGPTNeoXLayer
from modeling_hc.modeling_hc_granite import HCGraniteDecoderLayer
from modeling_hc.modeling_hc_olmo2 import HCOlmo2DecoderLayer
from modeling_hc.modeling_hc_qwen3 import HCQwen3DecoderLayer
from modeling_hc.recipes import suggestion

OURS = "a family of this package"
AS_IS = "fits as it is"
FEW_LINES = "fits with a few lines"
OWN_BLOCKS = "fits with blocks of its own"
SOMETHING_ELSE = "computes something else"
NOT_AT_ALL = "does not fit"
NOT_TRIED = "not tried"
VERDICTS = {
    OURS: "The blocks are those of the named file.",
    AS_IS: "The default blocks are exact. A family is the named file with other names.",
    FEW_LINES: "The blocks of the named family are exact.",
    OWN_BLOCKS: "Its layers only add to the stream, in blocks that no family here has. A family writes a method each; "
    "an arrow leads from one child of the layer to the next that a block calls.",
    SOMETHING_ELSE: "The default blocks find the names that they look for, run, and are wrong. Where the table names "
    "blocks, methods that compute what these add are exact.",
    NOT_AT_ALL: "Hyper-connections replace a stream to which blocks only add. Here norms, gates or scales act on it.",
    NOT_TRIED: "No tiny residual model could be made and run.",
}
EXACT = 1e-5
"""The largest difference from the parent, relative, that the order of a sum can make."""
PAGE = """# Which architectures fit

`python -m campaigns.fits` writes this page; here with transformers {version}. It builds each of its {count} causal
language models tiny, makes it hyper-connected, and compares logits, hidden states and cached greedy generation with
the residual model, for 1, 2 and 4 streams. [Adding a family](adding-a-family.md) starts with it; a family's tests then
check the rest, such as training. Models with images or sound are listed by their text model.

Names tell nothing. These have what the default blocks look for, so these run without an error, and are wrong: {traps}.
No generation was compared for {silent}, whose tiny residual model does not generate, either.
"""

LAYERS: dict[str, type] = {
    "qwen3": HCQwen3DecoderLayer,
    "olmo2": HCOlmo2DecoderLayer,
    "gemma3": HCGemma3DecoderLayer,
    "granite": HCGraniteDecoderLayer,
    "gpt_neox": HCGPTNeoXLayer,
}
"""A layer of each kind, by the family file that a new family would copy. The first has the default blocks; where its
layers have experts, the file to copy is Mixtral's."""

# Values of a tiny model's fields: the first pattern that a name matches. No multiplier may be 1, no window too long.
SIZES: list[tuple[str, Any]] = [
    (r"(unpadded_)?vocab_size(_per_layer_input)?", 99),
    (r"hidden_size|n_embd|d_model|(input_)?embedding_size|emb_dim|word_embed_proj_dim", 32),
    (r".*(intermediate_size|ffn_hidden_size|ffn_dim|dff|dim_ff|d_inner|n_inner|feed_forward_size).*", 48),
    (r"(num_hidden|n|num|(num_)?(decoder|encoder))_layers?|num_blocks", 4),
    (r"(num_|n_|index_n_|(num_)?(decoder|encoder)_|swa_num_|linear_num_value_|linear_num_|mamba_n_|mamba_num_)?"
     r"(attention_)?heads?", 4),
    (r"(swa_)?num_key_value_heads|num_kv_heads|linear_num_key_heads|n_groups", 2),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions", 64),
    (r"qk_nope_head_dim|qk_rope_head_dim|rotary_dim", 8),
    (r"(.*_)?head_dim|mamba_d_head|kv_channels|dim_head|attention_head_size", 16),
    (r".*(lora|norm|laurel)_rank|hidden_size_per_layer_input|.*state_size|.*_d_state|(mamba_)?chunk_size", 8),
    (r"mamba_d_ssm", 64),
    (r"(moe_)?(num|n)_(routed_|local_)?experts", 4),
    (r"(moe_)?(num|n)_shared_experts|num_kv_shared_layers|topk_group|first_k_dense_replace|num_dense_layers", 1),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts|n_group|zero_expert_num|index_topk_blocks", 2),
    (r"(attention_)?(sliding_)?window(_size)?|attention_chunk_size|index_topk|index_block_size", 4),
    (r".*layer_period|.*_every_n_layers|sliding_window_pattern|layer_group_size|.*layer_interval|.*_layer_step", 2),
    (r".*layer_offset|max_window_layers", 1),
    (r"local_attention|router_hidden_size|rel_extent", 16),
    (r"is_decoder|use_sliding_window|scale_embedding", True),
    (r"mlp_only_layers", [1]),
    (r"attention_type", "original_full"),
    (r"residual_multiplier", 0.22),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
]  # fmt: skip
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": None, "sliding_attention": None}},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "helium": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 8},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_budget": 4, "indexer_compress_ratio": 2},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
MULTIPLIER = re.compile(r"(?!time_step|rope|.*_init).*(multiplier|scale|scaling|scaling_factor)")


class Misfit(Exception):
    """Why hyper-connections, or one kind of blocks, do not fit."""


def model_types() -> list[str]:
    """Returns the causal language models of transformers. One with images or sound is listed by its text model."""
    parts = {"text_config", "vision_config", "audio_config", "audio_encoder", "audio_encoder_config", "patcher_config"}
    ours = {family.model_type for family in families().values()}
    types = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - ours - {"whisper", "trocr"}
    return sorted(name for name in types if parts.isdisjoint(CONFIG_MAPPING[name].sub_configs))


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Returns the configuration of a tiny model whose every multiplier, window and list of layers matters."""
    config_class = CONFIG_MAPPING[model_type]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        value = next((value for pattern, value in SIZES if re.fullmatch(pattern, field.name)), None)
        if value is None and field.default == 1.0 and isinstance(field.default, float):
            value = 0.7 if MULTIPLIER.fullmatch(field.name) else None
        if value is not None:
            values[field.name] = value
    if "kv_lora_rank" in values and "num_key_value_heads" in values:
        values["num_key_value_heads"] = values["num_attention_heads"]  # compressed, for all heads alike
    return config_class(**values | OTHER_SIZES.get(model_type, {}))


def tiny(model_type: str) -> PreTrainedModel:
    """Returns a tiny residual model with weights large enough for every block to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    for value in model.state_dict().values():  # a layer's scale may be a buffer
        if value.is_floating_point():
            value.add_(0.2 * torch.randn_like(value))
    return model


def results(model: PreTrainedModel, generates: bool = True) -> list[Tensor]:
    """Returns logits, hidden states, and of greedy generation with a cache the tokens and logits."""
    ids = torch.randint(5, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    outputs = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    streams = [close_streams(h, "mean") if h.dim() == 4 else h for h in outputs.hidden_states]
    if not generates:
        return [outputs.logits, *streams]
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    written = model.generate(ids[:, :6], **options)
    return [outputs.logits, *streams, written.sequences, *written.logits]


def difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Returns the largest difference, relative to the largest value of its tensor."""
    if [t.shape for t in actual] != [t.shape for t in expected]:
        raise Misfit("outputs have other shapes")
    pairs = zip(actual, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).nan_to_num(torch.inf).item() for a, b in pairs)


# ---- where the layers are ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Anatomy:
    """Where a model has its decoder layers, and the module that reads what the last one returns."""

    owner: str
    layers: str
    reader: str | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Anatomy":
        """Finds them in a forward pass."""
        model, names, calls = copy.deepcopy(model), {}, []

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append([names[module], next(iter([*args, *kwargs.values()]), None), None])
            module.call = calls[-1]

        def after(module: nn.Module, args: tuple, outputs: Any) -> None:
            module.call[2] = next((x for x in tree_leaves(outputs) if isinstance(x, Tensor)), None)

        for name, module in model.named_modules():
            names[module] = name
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(after)
        results(model, generates=False)
        lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        for name, members in lists:
            layers = {f"{name}.{i}" for i in range(len(members))}
            inside = [call for call in calls if call[0] in layers and isinstance(call[1], Tensor)]
            if len(members) > 1 and {call[0] for call in inside} == layers:
                if inside[0][1].dim() != 3 or inside[0][1].shape[-1] != model.config.hidden_size:
                    raise Misfit("its layers pass on several streams already")
                reader = next((call[0] for call in reversed(calls) if call[1] is inside[-1][2]), None)
                owner, _, attribute = name.rpartition(".")
                return cls(owner, attribute, reader)
        raise Misfit("it has no list of decoder layers, each called with the stream")


# ---- the layers of our families ---------------------------------------------------------------------------------


def connect(model: PreTrainedModel, anatomy: Anatomy, donor: type, num_streams: int) -> tuple[PreTrainedModel, list]:
    """Returns a copy with the blocks of one of our layers, and the names that a family would override besides."""
    model, overridden = copy.deepcopy(model), []
    config, owner = _add_fields(model, num_streams), model.get_submodule(anatomy.owner)
    if not isinstance(owner, PreTrainedModel):
        raise Misfit(f"its layers lie in {anatomy.owner}, which is no model")
    final_norm = (anatomy.reader or "").removeprefix(f"{anatomy.owner}.")
    if "." in final_norm or not hasattr(owner, final_norm):
        raise Misfit("no norm of the model reads what the last layer returns")
    norm, layers = getattr(owner, final_norm), getattr(owner, anatomy.layers)
    methods: dict[str, Any] = {"final_norm": final_norm}
    if anatomy.layers != "layers":
        methods["layers"] = property(attrgetter(anatomy.layers))
    if "kwargs" not in inspect.signature(inspect.unwrap(type(owner).forward)).parameters:
        methods["leaves_unfinished"] = lambda self, **kwargs: False
    overridden += list(methods)[1:]
    become(owner, type(f"HC{type(owner).__name__}", (HCModelMixin, type(owner)), methods))
    norm.__class__ = type(f"HC{type(norm).__name__}", (HCFinalNormMixin, type(norm)), {})
    norm.connect(config, eps=1e-6)
    for i, layer in enumerate(layers):
        blocks = {name: value for name, value in vars(donor).items() if not name.startswith("__")}
        layer.__class__ = type(f"HC{type(layer).__name__}", (*donor.__bases__[:-1], type(layer)), blocks)
        layer.config = config
        for name, value in (("hyper_connection_norm", {"eps": 1e-6, "centered": True}), ("output_projections", [])):
            if _lacks(layer, name, norm):
                setattr(type(layer), name, lambda self, value=value: value)
                overridden += [name] if name not in overridden else []
        layer.connect(config, i)
    return model.eval(), overridden


def _add_fields(model: PreTrainedModel, num_streams: int) -> PreTrainedConfig:
    values = {f.name: f.default for f in dataclasses.fields(HyperConnectionConfigMixin) if f.name != "num_streams"}
    values |= {"num_streams": num_streams, "stream_reduction": "mean", "stream_size": model.config.hidden_size}
    for name, value in values.items():
        setattr(model.config, name, value)
    return model.config


def _lacks(layer: Any, name: str, norm: nn.Module) -> bool:
    """Whether a layer needs this method: it raises, or there is LayerNorm where it says RMSNorm."""
    try:
        value = getattr(layer, name)()
    except AttributeError:
        return True
    x = torch.linspace(-1, 2, layer.config.hidden_size)[None, None]
    is_centered = bool(torch.allclose(norm(x), norm(x + 1), atol=1e-3))
    return name == "hyper_connection_norm" and is_centered != value.get("centered", False)


# ---- any layer --------------------------------------------------------------------------------------------------


class Tape(TorchFunctionMode):
    """Runs a layer's own `forward` on a stand-in for the residual stream, which is in truth the streams.

    Whatever reads the stand-in reads what a connection gives it, and a tensor added to it is a block's output. The
    stand-in is NaN: a use that is not seen here cannot give the parent's results.
    """

    SAME = ("to", "float", "contiguous", "clone", "dropout", "type_as", "view", "reshape")
    """Functions that return, in evaluation, what they are given, if that keeps its width."""

    def __init__(self, streams: Tensor, connection: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.streams, self.connection, self.count = streams, connection, 0
        self.open: tuple[Tensor, ...] = ()  # what the open block reads, alpha, beta
        self.written: Tensor | None = None
        self.before: list[Tensor] = []  # stand-ins for the stream that the open block reads, and for the one after it
        self.after = [torch.full_like(streams[..., 0, :], torch.nan)]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        mine = [x for x in tree_leaves((args, kwargs)) if self._stands_in(x)]
        if not mine:
            return func(*args, **kwargs)
        if func.__name__ in ("add", "add_", "__add__", "__radd__", "__iadd__") and len(mine) == 1 and not kwargs:
            other = args[0] if args[1] is mine[0] else args[1]
            if isinstance(other, Tensor) and other.shape == mine[0].shape:
                return self._write(mine[0], other)
        result = func(*args, **kwargs)
        if not any(isinstance(x, Tensor) for x in tree_leaves(result)):
            return result  # a shape, a dtype
        if func.__name__ in self.SAME and args[0] is mine[0] and result.shape[-1] == mine[0].shape[-1]:
            (self.before if _is_in(mine[0], self.before) else self.after).append(result)
            return result
        block_inputs = {id(x): self._read(x).view_as(x) for x in mine}
        args, kwargs = tree_map(lambda x: block_inputs.get(id(x), x), (args, kwargs))
        return func(*args, **kwargs)

    def _stands_in(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (_is_in(value, self.before) or _is_in(value, self.after))

    def _read(self, stand_in: Tensor) -> Tensor:
        if _is_in(stand_in, self.after):
            unwritten = () if self.written is None else (self.written, *self.open[1:])
            self.streams, *self.open = self.connection(self.count)(self.streams, *unwritten)
            self.before, self.after, self.written, self.count = self.after, [], None, self.count + 1
        return self.open[0]

    def _write(self, stand_in: Tensor, output: Tensor) -> Tensor:
        if not self.open or (self.written is not None and _is_in(stand_in, self.before)):
            raise Misfit("something is added to the stream that is no block's output")
        written = output.reshape(self.open[0].shape)
        self.written = written.clone() if self.written is None else self.written + written
        self.after = [torch.full_like(output, torch.nan)]
        return self.after[0]

    def finish(self, stand_in: Any, called: list[str]) -> Tensor:
        """Returns the streams behind the layer that has returned this, and last called these children."""
        if not isinstance(stand_in, Tensor) or not _is_in(stand_in, self.after):
            last = f"`{called[-1]}`" if called else "a scale of the stream"
            raise Misfit(f"a layer ends in no sum with its stream, but in {last}")
        return self.streams if self.written is None else depth_connection(self.streams, self.written, *self.open[1:])


def _is_in(tensor: Tensor, tensors: list[Tensor]) -> bool:
    return any(tensor is other for other in tensors)


def tape(model: PreTrainedModel, anatomy: Anatomy, num_streams: int) -> tuple[PreTrainedModel, dict[str, None]]:
    """Returns a copy whose layers run on tapes, and a dictionary whose keys, after a forward pass, are its blocks.

    Each is the children of the layer that a block calls, in order.
    """
    model, found = copy.deepcopy(model), {}
    layers = model.get_submodule(f"{anatomy.owner}.{anatomy.layers}".lstrip("."))
    for i, layer in enumerate(layers):
        _tape_layer(layer, i, i + 1 == len(layers), num_streams, found)
    return model, found


def _tape_layer(layer: nn.Module, layer_idx: int, is_last: bool, num_streams: int, found: dict[str, None]) -> None:
    connections: dict[int, nn.Module] = {}  # not the layer's children: upstream's loops over these
    running: list[Tape] = []
    called: dict[int, list[str]] = {}
    forward = layer.forward

    def connection(count: int) -> nn.Module:
        size = running[-1].streams.shape[-1]
        new = hyper_connections.DynamicHyperConnection(num_streams, size, 2 * layer_idx + count)
        return connections.setdefault(count, new)

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if hidden_states.dim() == 3:
            hidden_states = open_streams(hidden_states, num_streams)
        running.append(Tape(hidden_states, connection))
        called.clear()
        stand_in = running[-1].after[0]
        args, kwargs = ((stand_in, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stand_in})
        with running[-1] as current:
            outputs = forward(*args, **kwargs)
        found.update(dict.fromkeys(" → ".join(names) for names in called.values()))
        if not isinstance(outputs, Tensor) and type(outputs) not in (tuple, list):
            raise Misfit(f"a layer returns {type(outputs).__name__}")
        stand_in, *others = [outputs] if isinstance(outputs, Tensor) else outputs
        streams = current.finish(stand_in, called.get(current.count, []))
        streams = close_streams(streams, "mean") if is_last else streams
        return streams if isinstance(outputs, Tensor) else (streams, *others)

    layer.forward = run
    children = dict(layer.named_children())
    for name, child in list(children.items()):
        if isinstance(child, nn.ModuleList):
            children |= {f"{name}[{i}]": part for i, part in enumerate(child)}
    for name, child in children.items():
        child.register_forward_hook(
            lambda *_, name=name: (
                called.setdefault(running[-1].count, []).append(name) if running and running[-1].count else None
            )
        )


# ---- verdicts ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def survey(model_type: str) -> dict[str, Any]:
    """Returns the verdict on a model type, and what it rests on."""
    try:
        model = tiny(model_type)
        expected = results(copy.deepcopy(model), generates=False)
    except Exception as error:
        return {"verdict": NOT_TRIED, "reason": f"tiny model: {_line(error)}"}
    if not all(t.isfinite().all() for t in expected) or expected[0].std() < 1e-3:
        return {"verdict": NOT_TRIED, "reason": "the tiny model gives no finite or no different logits"}
    row: dict[str, Any] = {"generates": True}
    try:
        expected = results(copy.deepcopy(model))
    except Exception as error:
        row = {"generates": False, "generation": _line(error)}
    try:
        anatomy = Anatomy.of(model)
    except Misfit as misfit:
        return row | {"verdict": NOT_AT_ALL, "reason": str(misfit)}

    def try_out(make: Callable[[int], tuple[PreTrainedModel, Any]]) -> tuple[float, Any]:
        differences = []
        for num_streams in (1, 2, 4):
            converted, extra = make(num_streams)
            differences.append(difference(results(converted, row["generates"]), expected))
        return max(differences), extra

    for name, donor in LAYERS.items():
        try:
            off, overridden = try_out(lambda n, donor=donor: connect(model, anatomy, donor, n))
        except Exception as error:
            row.setdefault("default", _line(error))
            continue
        row.setdefault("default", off)
        if off < EXACT:
            as_it_is = name == "qwen3" and not overridden
            verdict = OURS if model_type in families() else AS_IS if as_it_is else FEW_LINES
            experts = name == "qwen3" and any(part.endswith(".experts") for part, _ in model.named_modules())
            return row | {"verdict": verdict, "like": "mixtral" if experts else name, "overrides": overridden}
    try:
        off, blocks = try_out(lambda n: tape(model, anatomy, n))
    except Exception as error:
        off, blocks, row["reason"] = torch.inf, {}, _line(error)
    if off < EXACT:
        return row | {"verdict": SOMETHING_ELSE if _is_trap(row) else OWN_BLOCKS, "blocks": list(blocks)}
    row.setdefault("reason", f"blocks that only add give something else (by {off:.0%})")
    return row | {"verdict": SOMETHING_ELSE if _is_trap(row) else NOT_AT_ALL}


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Misfit) else f"{type(error).__name__}: {text}"[:160]


def _child(model_type: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with redirect_stdout(None):  # some models print
        row = survey(model_type)
    sender.send(row)


def run(model_type: str, limit: float) -> dict[str, Any]:
    """Returns the row of a model type, surveyed in a process of its own for so many seconds at most."""
    context = multiprocessing.get_context("fork")  # which has imported everything
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(model_type, sender))
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(limit) else {"verdict": NOT_TRIED, "reason": f"took over {limit:.0f} s"}
    except EOFError:
        row = {"verdict": NOT_TRIED, "reason": "the process died"}
    process.kill()
    process.join()
    return {"model_type": model_type, "transformers": transformers.__version__} | row


def described(row: dict[str, Any]) -> str:
    """Returns what to do about a model type, or why nothing can be done."""
    if "like" in row:
        own = ", ".join(f"`{name}`" for name in row["overrides"])
        return f"as `modeling_hc_{row['like']}.py`" + (own and f", with its own {own}")
    if "blocks" in row:
        return "; ".join(f"`{block}`" for block in row["blocks"])
    return row["reason"]


def shown(row: dict[str, Any]) -> str:
    """Returns a row as a line."""
    notes = [described(row)]
    if _is_trap(row):
        notes.append(f"the default blocks run and are off by {row['default']:.0%}")
    if not row.get("generates", True):
        notes.append(f"the tiny residual model does not generate ({row['generation']})")
    return f"{row['model_type']}: {row['verdict']}. {'; '.join(notes)}"


def _is_trap(row: dict[str, Any]) -> bool:
    return isinstance(row.get("default"), float) and row["default"] >= EXACT


def page(rows: list[dict[str, Any]]) -> str:
    """Returns docs/architectures.md."""
    rows = sorted(rows, key=lambda row: row["model_type"])
    traps = ", ".join(f"`{row['model_type']}`" for row in rows if _is_trap(row))
    silent = ", ".join(f"`{row['model_type']}`" for row in rows if not row.get("generates", True)) or "none"
    text = [PAGE.format(version=transformers.__version__, count=len(rows), traps=traps, silent=silent)]
    for verdict, meaning in VERDICTS.items():
        groups: dict[str, list[str]] = {}
        for row in rows:
            if row["verdict"] == verdict:
                groups.setdefault(described(row), []).append(f"`{row['model_type']}`")
        if not groups:
            continue
        text += [f"## {verdict[0].upper()}{verdict[1:]}: {sum(map(len, groups.values()))}", "", meaning, ""]
        text += ["| | model types |", "|---|---|"]
        text += [f"| {what} | {', '.join(names)} |" for what, names in sorted(groups.items(), key=lambda g: g[1])]
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument("--output", type=Path, default=Path("runs/fits.jsonl"))
    parser.add_argument("--page", type=Path, help="write the page of all that --output knows")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of a model type")
    args = parser.parse_args()
    for name in args.model_types:
        if name not in CONFIG_MAPPING:
            parser.error(
                f"transformers {transformers.__version__} has no model type {name!r}{suggestion(name, model_types())} "
                "docs/architectures.md lists those that were tried."
            )
    torch.set_num_threads(1)  # forked processes have no other threads
    survey("llama")  # imports what every process would import
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines = args.output.read_text(encoding="utf-8").splitlines() if args.output.exists() else []
    rows = [row for row in map(json.loads, lines) if row["transformers"] == transformers.__version__]
    known = {row["model_type"]: row for row in rows}
    with args.output.open("a", encoding="utf-8") as file:
        for name in tqdm(args.model_types or [name for name in model_types() if name not in known], disable=None):
            known[name] = run(name, args.seconds)
            tqdm.write(shown(known[name]), file=sys.stdout)
            file.write(json.dumps(known[name]) + "\n")
            file.flush()
    if args.page:
        args.page.write_text(page(list(known.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
