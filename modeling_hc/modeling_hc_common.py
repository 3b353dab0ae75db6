# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What all hyper-connected families share: the decoder layer and the model mixin.

A family is the upstream transformers model whose decoder layers are hyper-connected, and nothing else. The layer that
reads the embeddings opens the streams and the final norm closes them, so upstream's model `forward`, caches and
state-dict keys stay upstream's.

    residual layer              hyper-connected layer
    h = h + attn(norm(h))       H, x, alpha, beta = attn_hc(H);   y = attn(norm(x))
    h = h + mlp(norm(h))        H, x, alpha, beta = mlp_hc(H, y, alpha, beta);   y = mlp(norm(x))
                                H = depth_connection(H, y, alpha, beta)
"""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, can_return_tuple

from .dispatch_hc import depth_connection, needs_reference
from .functional_hc import close_streams, open_streams
from .hyper_connections import CONNECTIONS, HyperConnection
from .loading_hc import check_fit, damage, shard_names
from .model_card_hc import write_model_card
from .recompute_hc import StreamRecompute

VARIANT_FIELDS = ("use_tanh", "sinkhorn_iterations", "hc_eps", "gate_init")
"""Fields of the configuration that reach a connection whose constructor asks for an argument of that name."""


class HCDecoderLayerMixin:
    """Makes an upstream Pre-Norm decoder layer hyper-connected (Algorithm 3).

    Expects the parent layer's `self_attn`, `mlp`, `input_layernorm` and `post_attention_layernorm`. A family whose
    hyper-connections do not normalise by RMSNorm with a weight overrides `hyper_connection_norm`.
    """

    def __init__(self, config: PreTrainedConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.config = config
        self.layer_idx = layer_idx
        self.attn_hc = self._hyper_connection(block_index=2 * layer_idx)
        self.mlp_hc = self._hyper_connection(block_index=2 * layer_idx + 1)
        for module, weight in self.output_projections():
            # For `_init_weights`, which sees one module at a time.
            module.output_projection = weight  # type: ignore[assignment]

    def hyper_connection_norm(self) -> dict[str, Any]:
        """Returns `eps`, `centered` and `affine` of the norm in a hyper-connection that has them (Appendix B)."""
        return {"eps": self.config.rms_norm_eps}

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        """Returns the modules that write to the streams, of the attention and of the MLP, and their weights' names."""
        return [(self.self_attn.o_proj, "weight"), (self.mlp.down_proj, "weight")]

    def _hyper_connection(self, block_index: int) -> HyperConnection:
        variant = CONNECTIONS[self.config.connection]
        known = {name: getattr(self.config, name) for name in VARIANT_FIELDS} | self.hyper_connection_norm()
        options = {name: value for name, value in known.items() if name in signature(variant).parameters}
        return variant(self.config.num_streams, self.config.hidden_size, block_index, **options)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Runs attention and MLP, each in its hyper-connection.

        Args:
            hidden_states: the streams `[B, S, N, D]`, or the embeddings `[B, S, D]`, of which each stream is a copy.
            **kwargs: what upstream's model passes to a layer, for the attention.

        Returns:
            The new streams `[B, S, N, D]`.
        """
        opened = hidden_states.dim() == 4
        streams = hidden_states if opened else open_streams(hidden_states, self.config.num_streams)

        streams, block_input, alpha, beta = self.attn_hc(streams)
        block_output, _ = self.self_attn(hidden_states=normalize(self.input_layernorm, block_input), **kwargs)
        streams, block_input, alpha, beta = self.mlp_hc(streams, block_output, alpha, beta)
        block_output = self.mlp(normalize(self.post_attention_layernorm, block_input))
        return depth_connection(streams, block_output, alpha, beta)


class HCFinalNormMixin:
    """Makes an upstream norm read the sum or mean of the streams (Algorithm 1).

    It stands behind whatever layers a model has left: some may be pruned, repeated, or skipped by an early exit. In a
    logit lens, `lm_head(norm(streams))` is right at every layer.
    """

    config: PreTrainedConfig
    kernel_condition = staticmethod(lambda norm: False)
    """Keeps out kernels of the Hub, which would replace this `forward` and read each stream by itself."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalises streams `[B, S, N, D]` or a hidden state `[B, S, D]`. Returns `[B, S, D]`."""
        if hidden_states.dim() == 4:
            hidden_states = close_streams(hidden_states, self.config.stream_reduction)
        return super().forward(hidden_states)


def normalize(norm: nn.Module, block_input: Tensor) -> Tensor:
    """Calls a block's norm, which is recomputed in the backward pass: only its input is saved.

    This offsets part of the memory that the streams cost, at little extra time.
    """
    if not torch.is_grad_enabled() or needs_reference():
        return norm(block_input)
    parameters: dict[str, Tensor] = dict(norm.named_parameters())

    def run(block_input: Tensor) -> Tensor:
        # `torch.func.functional_call` gives the module other parameters for the forward pass only.
        if all(now is then for now, then in zip(norm.parameters(), parameters.values(), strict=True)):
            return norm(block_input)
        return functional_call(norm, parameters, block_input)

    return checkpoint(run, block_input, use_reentrant=False, preserve_rng_state=False)


class HCPreTrainedModelMixin:
    """What a hyper-connected `PreTrainedModel` adds to its parent: dtype, initial values, the model card."""

    _keep_in_fp32_modules_strict = ["attn_hc", "mlp_hc"]
    decoder_class: ClassVar[type[PreTrainedModel]]
    """The family's model without a head."""

    def __init__(self, config: PreTrainedConfig) -> None:
        # Upstream's heads build their decoder with AutoModel. In a shared folder, the configuration is of a class that
        # no file of ours can import.
        if type(config) not in AutoModel._model_mapping:
            AutoModel.register(type(config), self.decoder_class)
        super().__init__(config)

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
            ValueError: a tensor of the network is missing, a hyper-connection has no place in the model or is there
                for some layers only, or the index of the shards is damaged or leads out of the folder.
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

        They are the static coefficients (the paper's rule) and the norms' weights. Of the rest of the model, biases
        and norms do not decay either: see `modeling_hc.parameter_groups`.

        Source: Section 4 ("Implementation") of arXiv 2409.19606.
        """
        return {
            name for name, _ in self.named_parameters() if re.search(r"_hc\.(alpha_bias|beta_bias|bias|norm)$", name)
        }

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Calls upstream's with is_custom_code=False; for custom code it would re-initialise loaded weights."""
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Upstream's initialisation, then the paper's: Eq. 14, and the std of the output projections (Section 4)."""
        super()._init_weights(module)
        if isinstance(module, HyperConnection):
            for name, value in module.initial_values().items():
                initialization.copy_(getattr(module, name), value)
        elif projection := getattr(module, "output_projection", None):
            weight = getattr(module, projection)
            if not getattr(weight, "_is_hf_initialized", False):
                exponent = {"divide": -0.5, "multiply": 0.5, "none": 0.0}[self.config.output_rescaling]
                weight.mul_(self.config.num_streams**exponent)

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
            sites = max(1, round(math.sqrt(2 * self.config.num_hidden_layers)))
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
        connections: list[nn.Module] = [module for module in self.modules() if isinstance(module, HyperConnection)]
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
    """Builds an upstream decoder with hyper-connected layers; upstream's constructor would build the residual ones."""

    def __init__(
        self, config: PreTrainedConfig, layer: type[HCDecoderLayerMixin], norm: nn.Module, rotary_emb: nn.Module
    ) -> None:
        config.validate_values()  # once more: from_pretrained changes fields one by one
        PreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(layer(config, i) for i in range(config.num_hidden_layers))
        if (head_dim := self.layers[0].self_attn.head_dim) % 2:  # type: ignore[operator, union-attr]
            raise ValueError(f"head_dim={head_dim} (hidden_size / num_attention_heads) must be even, for RoPE.")
        self.norm = norm
        self.norm.config = config
        self.rotary_emb = rotary_emb
        self.gradient_checkpointing = False
        self.recomputed_sites = 1  # see recompute_streams
        self.post_init()


class HCForCausalLMMixin:
    """Builds an upstream causal language model around a hyper-connected decoder."""

    def __init__(self, config: PreTrainedConfig, model: PreTrainedModel) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = model
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


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
        with StreamRecompute(self.recomputed_sites, depth_connection) if recompute else nullcontext():
            outputs = forward(self, *args, return_dict=True, **kwargs)
        if outputs.hidden_states is not None:
            outputs.hidden_states = tuple(
                close_streams(h, self.config.stream_reduction) if h is not None and h.dim() == 4 else h
                for h in outputs.hidden_states
            )
        return outputs

    return wrapper
