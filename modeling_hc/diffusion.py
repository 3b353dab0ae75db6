# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The class-conditional diffusion transformer (DiT) with hyper-connections, on diffusers' class of it.

    residual block                           hyper-connected block
    h = h + gate * attn(shifted(norm(h)))    H, x, alpha, beta = attn_hc(H);   y = gate * attn(shifted(norm(x)))
    h = h + gate * mlp(shifted(norm(h)))     H, x, alpha, beta = mlp_hc(H, y, alpha, beta);   y = gate * mlp(...)
                                             H = depth_connection(H, y, alpha, beta)

A block reaches from its norm to the gate of adaLN-Zero, so beta writes what is gated. The paper (Table 10) does not
say how it treats the gates, nor which norm its connections have; here it is that of the blocks, LayerNorm without
parameters.

The DiT paper (arXiv 2212.09748) embeds timestep and label once, and drops a label for the whole network. diffusers has
an embedder in each block, and in training each of them draws which labels it drops. Here labels are dropped once.
"""

from dataclasses import fields
from inspect import signature
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_hc import HCViTConfig, HyperConnectionConfigMixin, check_spelling
from .dispatch_hc import depth_connection
from .hyper_connections import StreamModule
from .loading_hc import is_connection
from .modeling_hc_common import HCDecoderLayerMixin, HCFinalNormMixin

try:
    from diffusers import AutoencoderKL, DiTTransformer2DModel, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, LabelEmbedding
    from diffusers.utils import BaseOutput
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"modeling_hc.diffusion needs {error.name}: pip install 'modeling-hc[diffusion]'.", name=error.name
    ) from error

PIPELINE_NULL = 1000
"""The label that `DiTPipeline` gives for no class, whatever the number of classes."""
EMBEDDER = "norm1.emb."
RESIDUAL_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second, in older checkpoints
DIT_FIELDS = [name for name in signature(DiTTransformer2DModel.__init__).parameters if name != "self"]
CONNECTION_FIELDS = [field.name for field in fields(HyperConnectionConfigMixin) if field.name != "output_rescaling"]
OWN_FIELDS = ["one_embedder", "class_dropout_prob", *CONNECTION_FIELDS]


class HCDiTConfig(HCViTConfig):
    """What the hyper-connections of a DiT are built from, checked as in every family."""


class HCDiTBlock(HCDecoderLayerMixin, BasicTransformerBlock):
    """A DiT block whose attention and MLP are hyper-connected."""

    def hyper_connection_norm(self) -> dict[str, Any]:
        """Returns the norm of the blocks."""
        return {"eps": 1e-6, "centered": True, "affine": False}

    def output_projections(self) -> list[tuple[nn.Module, str]]:
        """Returns none: the gates, which start at 0, set the size of what the blocks write."""
        return []

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Runs the blocks; the arguments are upstream's.

        Args:
            hidden_states: the streams `[B, S, N, D]`, or the patches `[B, S, D]`, which `open` makes streams of.

        Returns:
            The new streams `[B, S, N, D]`.
        """
        streams = hidden_states
        if streams.dim() == 3:
            streams = self.open(streams)
        streams, block_input, alpha, beta = self.attn_hc(streams)
        normed, gate, mlp_shift, mlp_scale, mlp_gate = self.norm1(
            block_input, timestep, class_labels, hidden_dtype=block_input.dtype
        )
        output = self.attn1(normed, attention_mask=attention_mask, **(cross_attention_kwargs or {}))
        streams, block_input, alpha, beta = self.mlp_hc(streams, gate[:, None] * output, alpha, beta)
        normed = self.norm3(block_input) * (1 + mlp_scale[:, None]) + mlp_shift[:, None]
        return depth_connection(streams, mlp_gate[:, None] * self.ff(normed), alpha, beta)


class HCDiTFinalLayerNorm(HCFinalNormMixin, nn.LayerNorm):
    """The last norm, which closes the streams."""


class GivenEmbedding(nn.Module):
    """Stands for the embedder of a block, whose labels are embedded already."""

    def forward(
        self, timestep: Tensor | None, class_labels: Tensor, hidden_dtype: torch.dtype | None = None
    ) -> Tensor:
        return class_labels


class HCDiTTransformer2DModel(DiTTransformer2DModel):
    """`DiTTransformer2DModel` with hyper-connected blocks.

    Args:
        num_attention_heads, ..., norm_eps: see `DiTTransformer2DModel`, where `num_embeds_ada_norm` is the number of
            classes.
        one_embedder: embed timestep and label once for all blocks, as in the DiT paper. False gives each block an
            embedder of its own, as in diffusers.
        class_dropout_prob: the part of the labels that are dropped in training, for classifier-free guidance.
        connection: the variant, see `HyperConnectionConfigMixin`; or None, which leaves the DiT residual.
        num_streams, use_tanh, sinkhorn_iterations, hc_eps, gate_init, stream_reduction: see
            `HyperConnectionConfigMixin`.

    Raises:
        ValueError: a field has a value with which no model can be built.
    """

    _keep_in_fp32_modules = ["attn_hc", "mlp_hc", "head_hc"]

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
        one_embedder: bool = True,
        class_dropout_prob: float = 0.1,
        connection: str | None = "dynamic",
        num_streams: int = 4,
        use_tanh: bool = True,
        sinkhorn_iterations: int = 20,
        hc_eps: float = 1e-20,
        gate_init: float = 0.01,
        stream_reduction: str = "sum",
    ) -> None:
        if not 0 <= class_dropout_prob < 1:
            raise ValueError(f"class_dropout_prob={class_dropout_prob} must be from 0, which drops none, to below 1.")
        values = locals()
        config = connection and HCDiTConfig(
            hidden_size=num_attention_heads * attention_head_dim,
            num_attention_heads=num_attention_heads,
            **{name: values[name] for name in CONNECTION_FIELDS},
        )
        super().__init__(**{name: values[name] for name in DIT_FIELDS})
        self.register_to_config(out_channels=self.out_channels)  # not None, by which `DiTPipeline` would divide
        if one_embedder:
            self.embedder = CombinedTimestepLabelEmbeddings(num_embeds_ada_norm, self.inner_dim)
        for i, block in enumerate(self.transformer_blocks):
            if one_embedder:
                block.norm1.emb = GivenEmbedding()
            if config:
                block.__class__ = HCDiTBlock
                block.connect(config, i)
        for module in self.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0  # `forward` drops labels
        if config:
            self.norm_out.__class__ = HCDiTFinalLayerNorm
            self.norm_out.connect(config, eps=1e-6)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> "HCDiTTransformer2DModel":
        """diffusers', which also reads a residual checkpoint, as `from_residual` does with the fields in `kwargs`."""
        check_spelling(kwargs, cls.__name__, others=[*DIT_FIELDS, *OWN_FIELDS])
        config = cls.load_config(pretrained_model_name_or_path, **kwargs)
        if config.get("_class_name") not in RESIDUAL_CLASSES:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        own = {name: kwargs.pop(name) for name in OWN_FIELDS if name in kwargs}
        return cls.from_residual(DiTTransformer2DModel.from_pretrained(pretrained_model_name_or_path, **kwargs), **own)

    @classmethod
    def from_residual(cls, residual: DiTTransformer2DModel, **own: Any) -> "HCDiTTransformer2DModel":
        """Makes a residual DiT hyper-connected; until it is trained, it computes what it computed.

        Args:
            residual: a DiT of diffusers.
            **own: fields of this class. By default `stream_reduction` is "mean", which makes the outputs exactly
                equal, and `one_embedder` is True where all embedders are equal, as in checkpoints of the DiT paper.

        Raises:
            TypeError: it is no DiT of diffusers, or an argument is no field of this class alone.
            ValueError: it has hyper-connections already, a field has a wrong value, or there is to be one embedder and
                those of the parent differ.
        """
        if not isinstance(residual, DiTTransformer2DModel):
            raise TypeError(f"{type(residual).__name__} is no DiTTransformer2DModel of diffusers.")
        if getattr(residual.config, "connection", None) is not None:
            raise ValueError(
                "This DiT has hyper-connections already: use it as it is, or give what `to_residual` returns."
            )
        if unknown := sorted(set(own) - set(OWN_FIELDS)):
            raise TypeError(f"from_residual has no argument {unknown[0]!r}; there are {', '.join(OWN_FIELDS)}.")
        weights = residual.state_dict()
        embedders = [block.norm1.emb.state_dict() for block in residual.transformer_blocks]
        one = all(torch.equal(other[name], value) for other in embedders for name, value in embedders[0].items())
        if own.get("one_embedder") and not one:
            raise ValueError("one_embedder=True, but the blocks of this DiT have embedders that differ: leave it out.")
        values = {"stream_reduction": "mean", "one_embedder": one} | own
        model = cls.from_config(residual.config, **values)
        nn.Module.to(model, residual.device, residual.dtype)  # diffusers' own warns of what stays fp32
        if model.config.one_embedder:
            weights |= {f"embedder.{name}": value for name, value in embedders[0].items()}
            weights = {name: value for name, value in weights.items() if EMBEDDER not in name}
        connections = {name: value for name, value in model.state_dict().items() if is_connection(name)}
        model.load_state_dict(weights | connections)
        return model.train(residual.training)

    def to_residual(self) -> DiTTransformer2DModel:
        """Returns the residual DiT that computes the same function, where there is one.

        Raises:
            ValueError: the hyper-connections were trained, or the streams are summed.
        """
        for name, module in self.named_modules():
            for key, value in module.initial_values().items() if isinstance(module, StreamModule) else ():
                # While the dynamic weights are zero, the gates have no effect.
                if not key.endswith("scale") and not torch.equal(getattr(module, key).cpu(), value.cpu()):
                    raise ValueError(f"{name}.{key} was trained, and no residual DiT computes the same function.")
        sums = self.config.connection not in (None, "frac") and self.config.num_streams > 1
        if sums and self.config.stream_reduction == "sum":
            raise ValueError(
                "stream_reduction='sum' adds the eps of the last norm to another variance than in a residual DiT, so "
                "none is exactly equal. If that difference is of no account, load the model with stream_reduction="
                "'mean', which has one."
            )
        weights = {name: value for name, value in self.state_dict().items() if not is_connection(name)}
        if self.config.one_embedder:
            embedder = {name: weights.pop(f"embedder.{name}") for name in self.embedder.state_dict()}
            for i in range(self.config.num_layers):
                weights |= {f"transformer_blocks.{i}.{EMBEDDER}{name}": value for name, value in embedder.items()}
        residual = DiTTransformer2DModel(**{name: self.config[name] for name in DIT_FIELDS})
        nn.Module.to(residual, self.device, self.dtype)
        residual.load_state_dict(weights)
        return residual.train(self.training)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Upstream's, with labels that are dropped, in training, and embedded once.

        Args:
            hidden_states: `[B, C, H, W]`.
            timestep: `[B]`.
            class_labels: `[B]`; the number of classes, which `DiTPipeline` calls 1000, stands for no class.
        """
        num_classes = self.config.num_embeds_ada_norm
        dropped = (class_labels == PIPELINE_NULL) & (num_classes < PIPELINE_NULL)
        if self.training and self.config.class_dropout_prob:
            draws = torch.rand(class_labels.shape, device=class_labels.device)
            dropped = dropped | (draws < self.config.class_dropout_prob)
        class_labels = class_labels.masked_fill(dropped, num_classes)
        if self.config.one_embedder:
            class_labels = self.embedder(timestep, class_labels, hidden_dtype=hidden_states.dtype)
        return super().forward(hidden_states, timestep, class_labels, cross_attention_kwargs, return_dict)


class Pixels(AutoencoderKL):
    """Stands for the autoencoder in a `DiTPipeline` whose DiT draws pixels; it has no weights."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0) -> None:
        ModelMixin.__init__(self)
        self.register_buffer("place", torch.zeros(1))  # tells the pipeline on which device it is

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> BaseOutput:
        """Returns the pixels as they are, as `sample`."""
        return BaseOutput(sample=z)
