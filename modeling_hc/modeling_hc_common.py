# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What all hyper-connected families share: the decoder layer and the model mixin.

A family is the upstream transformers model whose decoder layers are hyper-connected, and nothing else. The layer that
reads the embeddings opens the streams and the final norm closes them, so upstream's model `forward`, caches and
state-dict keys stay upstream's.

    residual layer              hyper-connected layer, of two blocks
    h = h + attn(norm(h))       H, x, alpha, beta = attn_hc(H);   y = attn(norm(x))
    h = h + mlp(norm(h))        H, x, alpha, beta = mlp_hc(H, y, alpha, beta);   y = mlp(norm(x))
                                H = depth_connection(H, y, alpha, beta)

The last line is left to the next layer, or to the final norm, where nobody looks at what a layer returns: writing for
one block and reading for the next is one step over the streams.
"""

import inspect
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from inspect import signature
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, WeightTransform
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, can_return_tuple

from .dispatch_hc import depth_connection, needs_reference
from .functional_hc import close_streams, open_streams
from .hyper_connections import CONNECTIONS, GatedReduction, HyperConnection, StreamModule
from .loading_hc import check_fit, damage, shard_names
from .model_card_hc import write_model_card
from .recompute_hc import StreamRecompute, recomputed

Unfinished = tuple[Tensor, ...]
"""Streams, and what is still to be written to them: a block's output, with the alpha and beta of its connection."""

VARIANT_FIELDS = ("use_tanh", "sinkhorn_iterations", "hc_eps", "gate_init")
"""Fields of the configuration that reach a connection whose constructor asks for an argument of that name."""


class HCDecoderLayerMixin:
    """Makes an upstream layer hyper-connected whose blocks add to a residual stream (Algorithm 3).

    As it stands, the blocks are those of a Llama layer, with or without experts. A family whose layer adds something
    else overrides `attention_block` and `mlp_block`, or names other `blocks`; one whose hyper-connections do not
    normalise by RMSNorm with a weight overrides `hyper_connection_norm`.
    """

    blocks: dict[str, str] = {"attn_hc": "attention_block", "mlp_hc": "mlp_block"}
    """The hyper-connections of a layer, in order, each with the method that computes its block."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.connect(config, layer_idx)

    def connect(self, config: PreTrainedConfig, layer_idx: int) -> None:
        """Adds the hyper-connections to a layer that upstream's constructor has built."""
        self.config = config
        self.layer_idx = layer_idx
        for i, connection in enumerate(self.blocks):
            setattr(self, connection, self._hyper_connection(len(self.blocks) * layer_idx + i))
        for module, weight in self.output_projections():
            # For `_init_weights`, which sees one module at a time.
            module.output_projection = weight  # type: ignore[assignment]

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        """Returns what attention adds to the residual stream, `[B, S, D]`."""
        return self.self_attn(hidden_states=normalize(self.input_layernorm, block_input), **kwargs)[0]

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        """Returns what the MLP adds to the residual stream, `[B, S, D]`."""
        return self.mlp(normalize(self.post_attention_layernorm, block_input))

    def hyper_connection_norm(self) -> dict[str, Any]:
        """Returns `eps`, `centered` and `affine` of the norm in a hyper-connection that has them (Appendix B)."""
        return {"eps": self.config.rms_norm_eps}

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        """Returns the modules whose weights set the size of what the blocks write, and the names of these weights."""
        experts = getattr(self.mlp, "experts", None)
        down = (self.mlp.down_proj, "weight") if experts is None else (experts, "down_proj")
        return [(self.self_attn.o_proj, "weight"), down]

    def _hyper_connection(self, block_index: int) -> HyperConnection:
        variant = CONNECTIONS[self.config.connection]
        known = {name: getattr(self.config, name) for name in VARIANT_FIELDS} | self.hyper_connection_norm()
        arguments = signature(variant).parameters
        options = {name: value for name, value in known.items() if name in arguments}
        return variant(self.config.num_streams, self.config.stream_size, block_index, **options)

    def open(self, embeddings: Tensor) -> Tensor:
        """Makes the streams `[B, S, N, D]` of the embeddings: copies, or the embeddings' fractions."""
        num_streams = self.config.num_streams
        if self.config.stream_size < self.config.hidden_size:
            return embeddings.unflatten(-1, (num_streams, -1))
        return open_streams(embeddings, num_streams)

    def forward(
        self, hidden_states: Tensor | Unfinished, *, leave_unfinished: bool = False, **kwargs: Any
    ) -> Tensor | Unfinished:
        """Runs the blocks, each in its hyper-connection.

        Args:
            hidden_states: the streams `[B, S, N, D]`, those that the layer before left unfinished, or the embeddings
                `[B, S, D]`, which `open` makes streams of.
            leave_unfinished: leave it to the next layer to write the last block's output.
            **kwargs: what upstream's model passes to a layer, for the blocks.

        Returns:
            The new streams `[B, S, N, D]`; unfinished, they are the arguments of `depth_connection`.
        """
        streams, *unwritten = hidden_states if isinstance(hidden_states, tuple) else (hidden_states,)
        if streams.dim() == 3:
            streams = self.open(streams)
        for connection, block in self.blocks.items():
            streams, block_input, alpha, beta = getattr(self, connection)(streams, *unwritten)
            unwritten = [getattr(self, block)(block_input, **kwargs), alpha, beta]
        return (streams, *unwritten) if leave_unfinished else depth_connection(streams, *unwritten)


class HCReorderedNormDecoderLayerMixin(HCDecoderLayerMixin):
    """The same of a layer with a norm behind each block, and none before it."""

    def attention_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return normalize(self.post_attention_layernorm, self.self_attn(hidden_states=block_input, **kwargs)[0])

    def mlp_block(self, block_input: Tensor, **kwargs: Any) -> Tensor:
        return normalize(self.post_feedforward_layernorm, self.mlp(block_input))

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        """Returns the norms behind the blocks, which would undo any other scale."""
        return [(self.post_attention_layernorm, "weight"), (self.post_feedforward_layernorm, "weight")]


class HCFinalNormMixin:
    """Makes an upstream norm read the reduction of the streams: their sum (Algorithm 1), mean, or a gated one.

    It stands behind whatever layers a model has left: some may be pruned, repeated, or skipped by an early exit. In a
    logit lens, `lm_head(norm(streams))` is right at every layer.
    """

    config: PreTrainedConfig
    kernel_condition = staticmethod(lambda norm: False)
    """Keeps out kernels of the Hub, which would replace this `forward` and read each stream by itself."""

    def forward(self, hidden_states: Tensor | Unfinished) -> Tensor:
        """Normalises streams `[B, S, N, D]`, finished or not, or a hidden state `[B, S, D]`. Returns `[B, S, D]`."""
        if isinstance(hidden_states, tuple):
            hidden_states = depth_connection(*hidden_states)
        if hidden_states.dim() == 4:
            hidden_states = self.close(hidden_states)
        return super().forward(hidden_states)

    def connect(self, config: PreTrainedConfig, eps: float, **kwargs: Any) -> None:
        """Adds the gated reduction, where there is one, to a norm that upstream's constructor has built."""
        self.config = config
        if config.stream_reduction == "gated":
            self.head_hc = GatedReduction(config.num_streams, config.hidden_size, eps, config.hc_eps, config.gate_init)

    def close(self, streams: Tensor) -> Tensor:
        """Reduces streams `[B, S, N, D]` to a hidden state `[B, S, D]`."""
        if self.config.stream_reduction == "gated":
            return self.head_hc(streams)
        if streams.shape[-1] < self.config.hidden_size:  # fractions
            return streams.flatten(-2)
        return close_streams(streams, self.config.stream_reduction)

    def closing_weights(self, streams: Tensor) -> Tensor:
        """Returns the weight of each stream in what `close` returns, `[B, S, N]`, fp32 or wider.

        Raises:
            ValueError: the streams are fractions, of which nothing is a weighted sum.
        """
        if streams.shape[-1] < self.config.hidden_size:
            raise ValueError(
                "connection='frac' cannot be analyzed: it mixes fractions of a hidden state, so that no layer reads a "
                "weighted sum of what the layers before it wrote. `modeling_hc.health.health` measures such a model."
            )
        if self.config.stream_reduction == "gated":
            return self.head_hc.weights(streams)
        num_streams = streams.shape[-2]
        weight = 1 / num_streams if self.config.stream_reduction == "mean" else 1.0
        return torch.full(streams.shape[:-1], weight, dtype=torch.float64, device=streams.device)


def normalize(norm: nn.Module, block_input: Tensor) -> Tensor:
    """Calls a block's norm, which is recomputed in the backward pass: only its input is saved.

    This offsets part of the memory that the streams cost, at little extra time.
    """
    if not torch.is_grad_enabled() or needs_reference() or _is_observed(norm):
        return norm(block_input)
    return recomputed(norm, block_input)


def _literally(conversion: WeightTransform) -> WeightTransform:
    """Returns a renaming whose target is read letter by letter, also when it is reversed, where a model is saved.

    Upstream's `.mlp.` is a regular expression then, which matches `.mlp_hc.`, too.
    """
    if not isinstance(conversion, WeightRenaming) or not all(
        re.fullmatch(r"[\w.]+", t) for t in conversion.target_patterns
    ):
        return conversion
    targets = [target.replace(".", r"\.") for target in conversion.target_patterns]
    return type(conversion)(conversion.source_patterns, targets)


class HCPreTrainedModelMixin:
    """What a hyper-connected `PreTrainedModel` adds to its parent: dtype, initial values, the model card."""

    _keep_in_fp32_modules_strict: Any
    decoder_class: ClassVar[type[PreTrainedModel]]
    """The family's model without a head."""
    parts: ClassVar[dict[str, Any]] = {}
    """What names of upstream's file mean in upstream's constructor: `{"LlamaDecoderLayer": HCLlamaDecoderLayer}`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Inherits what transformers finds by the name of a class or model type, which is ours, or in its text."""
        super().__init_subclass__(**kwargs)
        upstream = cls._upstream()
        by_type = {cls.config_class.model_type: getattr(cls.config_class, "parent_model_type", None)}
        for ours, parents in ({cls.__name__: upstream.__name__} | by_type).items():
            if conversions := get_checkpoint_conversion_mapping(parents):
                register_checkpoint_conversion_mapping(ours, list(map(_literally, conversions)), overwrite=True)

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        """Runs upstream's constructor, in which our classes stand in the place of upstream's.

        A residual model whose layers are replaced afterwards would take several times the time and memory.
        """
        config.validate_values()  # once more: from_pretrained changes fields one by one
        # Upstream's heads build their decoder by its name or with AutoModel. In a shared folder, the configuration is
        # of a class that no file of ours can import.
        if type(config) not in AutoModel._model_mapping:
            AutoModel.register(type(config), self.decoder_class)
        upstream = inspect.unwrap(super().__init__.__func__)
        names = upstream.__globals__ | {self.decoder_class._upstream().__name__: self.decoder_class} | self.parts
        init = FunctionType(upstream.__code__, names, upstream.__name__, upstream.__defaults__, upstream.__closure__)
        init.__kwdefaults__ = upstream.__kwdefaults__
        init(self, config, *args, **kwargs)

    def post_init(self) -> None:
        """Upstream's, with which upstream's constructors end."""
        super().post_init()
        self.keep_stream_modules_in_fp32()

    def keep_stream_modules_in_fp32(self) -> None:
        """Adds the hyper-connections to the modules that upstream loads in fp32 whatever the dtype of the rest."""
        names = {name.rpartition(".")[2] for name, module in self.named_modules() if isinstance(module, StreamModule)}
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), *names}

    @classmethod
    def _upstream(cls) -> type[PreTrainedModel]:
        """Returns the class of transformers that this one stands for."""
        return next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Asks the parent: upstream searches the text of the class's file for a decorator that stands in its own."""
        return cls._upstream()._can_set_experts_implementation()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Upstream's, which also rejects incomplete checkpoints, foreign hyper-connections and pickles (`loading_hc`).

        Raises:
            ValueError: a tensor of the network is missing, or a head while other tensors have no place; a
                hyper-connection has no place in the model or is there for some layers only; or the index of the shards
                is damaged or leads out of the folder.
            OSError: there are no weights in safetensors files, or they are damaged.
            RuntimeError: a tensor has another shape than the configuration asks for.
        """
        if (own_class := cls._class_of_checkpoint(pretrained_model_name_or_path, **kwargs)) is not None:
            options = {"output_loading_info": output_loading_info, "ignore_mismatched_sizes": ignore_mismatched_sizes}
            return own_class.from_pretrained(pretrained_model_name_or_path, *args, **options, **kwargs)
        where = f"{pretrained_model_name_or_path} does not fit {cls.__name__}:"
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            shard_names(folder / SAFE_WEIGHTS_INDEX_NAME)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs | {"use_safetensors": True},
            )
        except (OSError, SafetensorError) as error:
            if (reason := damage(pretrained_model_name_or_path, folder)) is None:
                raise
            raise OSError(f"{reason} ({' '.join(str(error).split())})") from error
        except RuntimeError as error:
            raise RuntimeError(f"{where} {' '.join(str(error).split())}") from error
        check_fit(model, info, where, ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model

    @classmethod
    def _class_of_checkpoint(cls, name: str | PathLike, **kwargs: Any) -> type[PreTrainedModel] | None:
        """Returns the user's class whose code a checkpoint brings for the Auto class that asks, or None.

        Upstream prefers the class that is registered for the configuration, ours, unless it is transformers' own.
        """
        auto_map = getattr(kwargs.get("config"), "auto_map", None) or {}
        for auto_class, ours in cls.config_class.auto_classes.items():
            theirs = auto_map.get(auto_class, ours)
            if ours.endswith(f".{cls.__name__}") and theirs != ours and kwargs.get("trust_remote_code"):
                return get_class_from_dynamic_module(theirs, name, **kwargs)
        return None

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the hyper-connections' parameters that do not decay, for optimizers that ask for them.

        They are the static coefficients (the paper's rule), the norms' weights, and the gated reduction, which is part
        of a norm. Of the rest of the model, biases and norms do not decay either: see `modeling_hc.parameter_groups`.

        Source: Section 4 ("Implementation") of arXiv 2409.19606.
        """
        undecayed = re.compile(r"_hc\.(alpha_bias|beta_bias|bias|norm)$|\bhead_hc\.")
        return {name for name, _ in self.named_parameters() if undecayed.search(name)}

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Calls upstream's with is_custom_code=False; for custom code it would re-initialise loaded weights."""
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Upstream's initialisation, then the paper's: Eq. 14, and the std of the output projections (Section 4)."""
        super()._init_weights(module)
        if isinstance(module, StreamModule):
            for name, value in module.initial_values().items():
                initialization.copy_(getattr(module, name), value)
        elif projection := getattr(module, "output_projection", None):
            weight = getattr(module, projection)
            if not getattr(weight, "_is_hf_initialized", False):
                exponent = {"divide": -0.5, "multiply": 0.5, "none": 0.0}[self.config.output_rescaling]
                self.rescale(weight, self.config.num_streams**exponent)

    def rescale(self, weight: nn.Parameter, factor: float) -> None:
        """Multiplies the size of what a block writes by a factor, in place."""
        weight.mul_(factor)

    def recompute_streams(self, sites: int | None = None) -> None:
        """Makes the backward passes of this model recompute streams instead of keeping them, with equal results.

        Compiled models ignore it: there the compiler chooses what to keep
        (`torch._functorch.config.activation_memory_budget`). Under gradient checkpointing, whole layers are recomputed
        instead.

        Args:
            sites: keep the streams before every `sites`-th block, counting attention and MLP. By default the square
                root of the number of blocks, which keeps least; 1 turns recomputation off.

        Raises:
            ValueError: `sites` is less than 1.
        """
        if sites is None:
            sites = max(1, round(math.sqrt(sum(len(layer.blocks) for layer in self.base_model.layers))))
        if not isinstance(sites, int) or sites < 1:
            raise ValueError(f"sites is {sites!r}; give a whole number of blocks, 1 or more.")
        self.base_model.recomputed_sites = sites

    def shard_connections(self) -> None:
        """Gives the hyper-connections to FSDP2 as a group of their own, in fp32 whatever the precision of the rest.

        FSDP2 computes with copies of the parameters in the dtype of its mixed-precision policy, one dtype a group, and
        coefficients made from bf16 parameters are no fp32 coefficients. In this group every process keeps all
        parameters, which are few, and gradients are averaged, also in fp32. Call it before the optimizer is made and
        before `Accelerator.prepare` or `Trainer.train`, which shard what is left; torch.distributed must have started.
        """
        # Here, because not every build of torch has them.
        from torch.distributed import get_world_size
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        names = ("dp_replicate", "dp_shard")
        mesh = init_device_mesh(device.type, (get_world_size(), 1), mesh_dim_names=names)  # type: ignore[union-attr]
        connections: list[nn.Module] = [module for module in self.modules() if isinstance(module, StreamModule)]
        fully_shard(
            connections,
            mesh=mesh,
            reshard_after_forward=False,
            mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        )

    def save_pretrained(
        self, save_directory: str | PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Upstream's, which also leaves a model card in a folder that has none, and our code where FSDP2 wraps us."""
        wrapped = type(self)
        own = next(cls for cls in wrapped.__mro__ if not cls.__module__.startswith("torch."))
        if own is not wrapped:  # a class that FSDP2 derived from ours: its file is torch's, and has no model
            self.__class__ = own
            try:
                return self.save_pretrained(save_directory, is_main_process, *args, **kwargs)
            finally:
                self.__class__ = wrapped
        if is_main_process and not getattr(self, "_hf_peft_config_loaded", False):
            write_model_card(save_directory, self)
            self._model_card = (Path(save_directory) / "README.md").read_text(encoding="utf-8")
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def _upload_modified_files(self, working_dir: str | PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, which has put a stub in the place of our card if the repository has no card of its own."""
        where = {name: kwargs.get(name) for name in ("token", "revision")}
        if hasattr(self, "_model_card") and not HfApi().file_exists(repo_id, "README.md", **where):
            (Path(working_dir) / "README.md").write_text(self._model_card, encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


class HCModelMixin:
    """What a hyper-connected decoder adds to upstream's."""

    final_norm: ClassVar[str] = "norm"
    """The name of the last norm, which closes the streams."""
    recomputed_sites = 1
    """See `recompute_streams`."""
    gradient_checkpointing = False  # upstream's constructors of text models set it, too

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if HCModelMixin in cls.__bases__:  # not a class that FSDP2 or a user derives from ours
            cls.forward = hyper_connected(cls.forward)

    def post_init(self) -> None:
        """Upstream's, with which upstream's constructors end."""
        config, norm = self.config, getattr(self, self.final_norm)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rotated = head_dim * (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1)
        if hasattr(config, "rope_parameters") and int(rotated) % 2:
            part = "" if rotated == head_dim else f", or {int(rotated)}, the part of it that is rotated,"
            raise ValueError(f"head_dim={head_dim} (hidden_size / num_attention_heads){part} must be even, for RoPE.")
        norm.connect(config, **self.layers[0].hyper_connection_norm())
        super().post_init()

    def leaves_unfinished(self, **kwargs: Any) -> bool:
        """Returns whether a layer may leave its last block to the next one in a forward pass with these arguments.

        Not where a hook, upstream's recorder of hidden states, a checkpoint or a user's module sees what they return.
        """
        norm = getattr(self, self.final_norm)
        return (
            not _is_observed(norm)
            and isinstance(norm, HCFinalNormMixin)
            and not kwargs.get("output_hidden_states", self.config.output_hidden_states)
            and not (self.gradient_checkpointing and self.training)
            and all(isinstance(layer, HCDecoderLayerMixin) and not _is_observed(layer) for layer in self.layers)
        )


def _is_observed(module: Any) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


class HCMoeForCausalLMMixin:
    """What a hyper-connected causal language model with experts adds to upstream's."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Upstream's, without the load-balancing loss: with a cache, its mask is longer than its router logits."""
        return super().prepare_inputs_for_generation(*args, **kwargs) | {"output_router_logits": False}


def hyper_connected(forward: Callable) -> Callable:
    """Wraps an upstream model's `forward`: `recompute_streams`, and `output_hidden_states` as in every other model.

    Hidden states are `[B, S, D]`: a layer's streams reduced as the last layer reduces them, so that a converted
    checkpoint returns its parent's hidden states. For the streams themselves, hook the layers.
    """

    @can_return_tuple
    @wraps(forward)
    def wrapper(self, *args: Any, **kwargs: Any) -> Any:
        whole_layers = self.gradient_checkpointing and self.training
        recompute = self.recomputed_sites > 1 and torch.is_grad_enabled() and not whole_layers
        recompute = recompute and not needs_reference()
        if self.leaves_unfinished(**kwargs):
            kwargs["leave_unfinished"] = True
        with StreamRecompute(self.recomputed_sites, depth_connection) if recompute else nullcontext():
            outputs = forward(self, *args, return_dict=True, **kwargs)
        if outputs.hidden_states is not None:
            outputs.hidden_states = tuple(
                getattr(self, self.final_norm).close(h) if h is not None and h.dim() == 4 else h
                for h in outputs.hidden_states
            )
        return outputs

    return wrapper
