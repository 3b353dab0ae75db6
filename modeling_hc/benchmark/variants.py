# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What is timed: the stock Llama, ours, and what others offer between the stock model's blocks."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import local_torch_dtype
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .. import HCLlamaConfig, HCLlamaForCausalLM
from ..hyper_connections import CONNECTIONS
from ..loading_hc import is_connection


class ListedHyperConnection(nn.Module):
    """Algorithm 2 of the paper as its operations stand there, eager PyTorch: what anybody would write first."""

    def __init__(self, rate: int, dim: int, layer_id: int) -> None:
        super().__init__()
        read = torch.zeros(rate, 1)
        read[layer_id % rate] = 1
        self.static_alpha = nn.Parameter(torch.cat([read, torch.eye(rate)], dim=1))
        self.static_beta = nn.Parameter(torch.ones(rate))
        self.dynamic_alpha_fn = nn.Parameter(torch.zeros(dim, rate + 1))
        self.dynamic_alpha_scale = nn.Parameter(torch.full((1,), 0.01))
        self.dynamic_beta_fn = nn.Parameter(torch.zeros(dim))
        self.dynamic_beta_scale = nn.Parameter(torch.full((1,), 0.01))
        self.layer_norm = nn.LayerNorm(dim)

    def width_connection(self, streams: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.layer_norm(streams)
        alpha = torch.tanh(normed @ self.dynamic_alpha_fn) * self.dynamic_alpha_scale + self.static_alpha
        beta = torch.tanh(normed @ self.dynamic_beta_fn) * self.dynamic_beta_scale + self.static_beta
        return alpha.transpose(-1, -2) @ streams, beta

    def depth_connection(self, mixed: Tensor, output: Tensor, beta: Tensor) -> Tensor:
        return torch.einsum("blh,bln->blnh", output, beta) + mixed[..., 1:, :]


class ListedDecoderLayer(LlamaDecoderLayer):
    """Algorithm 3: the stock attention and MLP between the listed connections."""

    def __init__(self, config: LlamaConfig, layer_idx: int, rate: int) -> None:
        super().__init__(config, layer_idx)
        self.rate, self.first, self.last = rate, layer_idx == 0, layer_idx == config.num_hidden_layers - 1
        self.attn_hc = ListedHyperConnection(rate, config.hidden_size, 2 * layer_idx)
        self.mlp_hc = ListedHyperConnection(rate, config.hidden_size, 2 * layer_idx + 1)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        streams = hidden_states.unsqueeze(-2).repeat(1, 1, self.rate, 1) if self.first else hidden_states
        mixed, beta = self.attn_hc.width_connection(streams)
        output, _ = self.self_attn(hidden_states=self.input_layernorm(mixed[..., 0, :]), **kwargs)
        streams = self.attn_hc.depth_connection(mixed, output, beta)
        mixed, beta = self.mlp_hc.width_connection(streams)
        output = self.mlp(self.post_attention_layernorm(mixed[..., 0, :]))
        streams = self.mlp_hc.depth_connection(mixed, output, beta)
        return streams.sum(-2) if self.last else streams


class RivalDecoderLayer(LlamaDecoderLayer):
    """The stock attention and MLP between two modules of another library; the ends open and close."""

    def __init__(self, config: LlamaConfig, layer_idx: int, streams: int) -> None:
        super().__init__(config, layer_idx)
        self.streams, self.first, self.last = streams, layer_idx == 0, layer_idx == config.num_hidden_layers - 1
        self.attn_hc, self.mlp_hc = (self.connection(config, 2 * layer_idx + i) for i in (0, 1))

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        h = hidden_states.unsqueeze(-2).repeat(1, 1, self.streams, 1) if self.first else hidden_states
        h = self.site(self.attn_hc, h, lambda x: self.self_attn(hidden_states=self.input_layernorm(x), **kwargs)[0])
        h = self.site(self.mlp_hc, h, lambda x: self.mlp(self.post_attention_layernorm(x)))
        return h.sum(-2) if self.last else h


class LucidrainsDecoderLayer(RivalDecoderLayer):
    """The package hyper-connections: dynamic, with tanh."""

    def connection(self, config: LlamaConfig, index: int) -> nn.Module:
        from hyper_connections import HyperConnections

        return HyperConnections(self.streams, dim=config.hidden_size, layer_index=index, tanh=True)

    def site(self, connection: nn.Module, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        batch = h.shape[0]  # it wants [batch * streams, sequence, dim], streams innermost
        block_input, add = connection(h.transpose(1, 2).flatten(0, 1))
        return add(block(block_input)).unflatten(0, (batch, -1)).transpose(1, 2)


class DeepseekDecoderLayer(RivalDecoderLayer):
    """The manifold-constrained hyper-connection of transformers' DeepSeek-V4, another method (arXiv 2512.24880)."""

    def connection(self, config: LlamaConfig, index: int) -> nn.Module:
        from transformers.models.deepseek_v4 import modeling_deepseek_v4

        fields = {"hc_mult": self.streams, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6}
        module = modeling_deepseek_v4.DeepseekV4HyperConnection(
            SimpleNamespace(hidden_size=config.hidden_size, **fields)
        )
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        return module

    def site(self, connection: nn.Module, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        post, comb, block_input = connection(h)
        written = post.to(h.dtype).unsqueeze(-1) * block(block_input).unsqueeze(-2)
        return written + torch.matmul(comb.to(h.dtype).transpose(-1, -2), h)


class LigerDecoderLayer(RivalDecoderLayer):
    """The mHC kernels of Liger-Kernel: another method (arXiv 2512.24880), in Triton."""

    def connection(self, config: LlamaConfig, index: int) -> nn.Module:
        from liger_kernel.transformers import LigerMHC

        sizes = {"hc": self.streams, "c": config.hidden_size}
        return LigerMHC(nn.Identity(), **sizes, phi_dtype=torch.get_default_dtype())  # its module wraps one layer only

    def site(self, connection: nn.Module, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        from liger_kernel.transformers.functional import liger_mhc_coeffs, liger_mhc_post_res, liger_mhc_pre

        c = connection
        read, write, carry = liger_mhc_coeffs(
            h, c.phi, c.b, c.alpha_pre, c.alpha_post, c.alpha_res, allow_fp32=h.dtype == torch.float32
        )
        return liger_mhc_post_res(h, block(liger_mhc_pre(h, read)), write, carry)


RIVALS = {
    "listing": ListedDecoderLayer,
    "lucidrains": LucidrainsDecoderLayer,
    "deepseek": DeepseekDecoderLayer,
    "liger": LigerDecoderLayer,
}
FOREIGN = ("lucidrains", "deepseek", "liger")  # with other initial values than the stock model's
OURS = (*CONNECTIONS, "recompute")


@dataclass
class Variant:
    name: str
    model: PreTrainedModel
    step: Callable[..., CausalLMOutputWithPast]
    decode: Callable[..., CausalLMOutputWithPast]
    cache: StaticCache | None  # where decoding is compiled


def absent(kind: str, device: str) -> str | None:
    """Returns why there can be no rows of a kind, or None."""
    package = {"lucidrains": "hyper_connections", "liger": "liger_kernel"}.get(kind, "transformers")
    if not find_spec(package):
        return f"the package {package.replace('_', '-')} is not installed"
    if kind == "deepseek" and not find_spec("transformers.models.deepseek_v4"):
        return f"transformers {transformers.__version__} does not have it"
    if kind == "liger" and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels need CUDA"
    return None


def shape_of(args: argparse.Namespace) -> dict[str, int]:
    return {
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden_size // args.head_size,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": args.sequence + args.decode_tokens,
    }


def build(name: str, shape: dict[str, int], dtype: torch.dtype, device: str, seed: int = 0) -> PreTrainedModel:
    """Builds "stock" or a kind with its number of streams; "recompute-N" is dynamic, with block recompute."""
    torch.manual_seed(seed)
    kind, _, n = name.partition("-")
    with torch.device(device):  # a CPU takes ten seconds to draw a billion weights
        if kind in OURS:
            connection = "dynamic" if kind == "recompute" else kind
            fields = {"num_streams": int(n), "connection": connection, "output_rescaling": "none"}
            model = HCLlamaForCausalLM._from_config(HCLlamaConfig(**shape, **fields), dtype=dtype)
            if kind == "recompute":
                model.recompute_streams()
            return model
        config = LlamaConfig(**shape)
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
        if kind in RIVALS:
            with local_torch_dtype(dtype):
                layers = (RIVALS[kind](config, i, int(n)) for i in range(len(model.model.layers)))
                model.model.layers = nn.ModuleList(layers)
        return model


def prepare(name: str, shape: dict[str, int], args: argparse.Namespace, stock: PreTrainedModel | None) -> Variant:
    """Builds a model with the stock model's weights wherever the names are the same, and compiles it."""
    model = build(name, shape, getattr(torch, args.dtype), args.device)
    if stock is not None:
        missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False, assign=True)
        assert not unexpected and all(map(is_connection, missing)), (missing, unexpected)
    if not args.compile:
        return Variant(name, model, model, model, None)
    # Sizes are constants, or what was compiled for one variant would make those of the next dynamic.
    options = {"fullgraph": not name.startswith(FOREIGN), "dynamic": False}
    step, decode = torch.compile(model, **options), torch.compile(model, mode="reduce-overhead", **options)
    return Variant(name, model, step, decode, StaticCache(model.config, args.sequence + args.decode_tokens))
