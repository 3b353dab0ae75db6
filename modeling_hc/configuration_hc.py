# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Configurations: what a hyper-connected model adds to its residual parent's configuration."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from operator import ge
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import as_validated_field, strict
from transformers import (
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    ViTConfig,
)
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .registration_hc import register_names, register_names_lazily


@as_validated_field
def _number_of_streams(value: int) -> None:
    if isinstance(value, bool) or not 1 <= value <= 1024:  # at 1024, the coefficients of one token take 4 MB a block
        raise ValueError(
            f"num_streams={value!r} must be an integer from 1 to 1024: choose {'more' if value < 1 else 'fewer'} "
            "streams; the paper uses 4 by default."
        )


# Common aliases of our fields: the paper's, other libraries', abbreviations.
_ELSEWHERE = {
    "rate": "num_streams",
    "expansion_rate": "num_streams",
    "hc_mult": "num_streams",
    "num_residual_streams": "num_streams",
    "tanh": "use_tanh",
    "dynamic": "connection",
    "hc_sinkhorn_iters": "sinkhorn_iterations",
    "sinkhorn_iters": "sinkhorn_iterations",
}


def check_spelling(names: Iterable[str], owner: str, others: Iterable[str] = ()) -> None:
    """Rejects a name that is nearly a field of `HyperConnectionConfigMixin` or one of some others, or an alias.

    Raises:
        ValueError: it names the field that was meant.
    """
    known = [*(field.name for field in fields(HyperConnectionConfigMixin)), *others]
    for name in names:
        if name in known:
            continue
        near = get_close_matches(name, known, cutoff=0.81)  # upstream's num_beams and num_streams are at 0.8
        meant = _ELSEWHERE.get(name) or (near[0] if near else "num_streams" if "streams" in name else None)
        if meant:
            raise ValueError(f"{owner} has no field {name!r}; did you mean {meant!r}?")


def _in_reach(value: Any) -> bool:
    """Returns whether fp32 can divide by a number and square it, with room to spare; not so NaN."""
    return isinstance(value, int | float) and 1e-20 <= value <= 1e20


# Other fields that must be positive integers, besides num_... and ..._size.
_LENGTHS = ("head_dim", "max_position_embeddings", "sliding_window")
_ROPE_NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings")


@dataclass(kw_only=True, repr=False)
class HyperConnectionConfigMixin:
    """The fields that every hyper-connected family adds to its parent's configuration.

    Args:
        num_streams: N, the number of residual streams ("expansion rate" n in the paper), 1 to 1024.
        connection: the variant. "dynamic" (DHC) and "static" (SHC) are the paper's; "mhc" (a doubly stochastic carry),
            "identity" (none), "mhc_lite" (permutations) and "kromhc" (Kronecker products) bound what is read,
            written and carried. "frac" is "dynamic" of `num_streams` fractions of one hidden state instead of streams
            of its size; whatever `stream_reduction` is, they are put side by side again.
        use_tanh: whether coefficients of "dynamic" and "frac" pass through tanh; False is the paper's "W/O tanh".
        sinkhorn_iterations: of "mhc", 1 to 1000; its paper's number is 20.
        hc_eps: a number that the bounded variants add to what is read, and "mhc" to sums that it divides by. At the
            default only numbers that underflow feel it; checkpoints of other libraries come with 1e-6.
        gate_init: initial value of the gates, by which the dynamic part of coefficients is multiplied; 0.01 in the
            papers. The dynamic weights start at 0, so it changes how a model learns, not what it starts as.
        stream_reduction: how the streams become the final hidden state. "sum" is the paper's. "mean" makes a converted
            residual checkpoint give exactly its parent's outputs; "sum" does so up to the eps of the final norm.
            "gated" starts as the mean, with weights that each token's streams then move.
        output_rescaling: what initialisation does to the std of the output projections of attention and MLP. The paper
            scales it "by a factor of sqrt(n)" and does not say which way. "divide" (by sqrt(N)) is the reading that
            brings the std of the output nearer to the residual network's; "multiply" is the other; "none" leaves the
            parent's initialisation. Weights that are loaded from a checkpoint are never rescaled.

    Raises:
        StrictDataclassFieldValidationError: a field has a wrong type, or one of the fields above a wrong value.
        ValueError: a value of the parent's with which no model can be built or is finite (`validate_values`), a
            misspelt field, or the configuration of another architecture.

    Source: Sections 2 and 4 ("Implementation") of arXiv 2409.19606.
    """

    num_streams: int = _number_of_streams(default=4)
    connection: Literal["dynamic", "static", "mhc", "identity", "mhc_lite", "kromhc", "frac"] = "dynamic"
    use_tanh: bool = True
    sinkhorn_iterations: int = 20
    hc_eps: float | int = 1e-20
    gate_init: float | int = 0.01
    stream_reduction: Literal["sum", "mean", "gated"] = "sum"
    output_rescaling: Literal["divide", "multiply", "none"] = "divide"

    parent_model_type: ClassVar[str]
    """The residual architecture whose checkpoints load as they are."""

    auto_classes: ClassVar[dict[str, str]]
    """The family's classes by Auto class, as `file.Class`: what a shared folder tells `trust_remote_code` to load."""

    def __post_init__(self, **kwargs: Any) -> None:
        check_spelling(kwargs, type(self).__name__)
        kwargs["auto_map"] = self._auto_map(kwargs.get("auto_map") or {})
        self.validate_values()  # before upstream divides by some of them
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Upstream's, which passes over arguments that are no fields; here a misspelt field is rejected."""
        check_spelling(kwargs, cls.__name__)
        return super().from_dict(config_dict, **kwargs)

    def _auto_map(self, saved: dict[str, str]) -> dict[str, str]:
        """Returns our classes by Auto class, but a user's own class where the checkpoint names one.

        `repository--file.Class`, which upstream makes of `file.Class` on loading from the Hub, is ours again.
        """
        ours = set(self.auto_classes.values())
        return self.auto_classes | {k: v for k, v in saved.items() if str(v).rpartition("--")[2] not in ours}

    def to_dict(self) -> dict[str, Any]:
        """Upstream's. PEFT reads the dictionary just before it looks its `model_type` up."""
        register_names_lazily(type(self))
        return super().to_dict()

    @property
    def stream_size(self) -> int:
        """D, the size of a stream: the hidden size, or that of a fraction."""
        return self.hidden_size // self.num_streams if self.connection == "frac" else self.hidden_size

    def validate_values(self) -> None:
        """Validates inherited fields. Upstream checks few of them, and some give no model or one that returns NaN.

        `@strict` calls it, as upstream's methods of such names, and so does a model, since `from_pretrained` changes
        fields one by one.

        Raises:
            ValueError: names the field.
        """
        require = self._require
        self._validate_variant(require)
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, float):
                require(value == 0 or _in_reach(value), name, "0, or from 1e-20 to 1e20")
            elif isinstance(value, int) and name.startswith("num_"):
                require(1 <= value < 2**16, name, "from 1 to 65535")
            elif isinstance(value, int) and (name.endswith("_size") or name in _LENGTHS):
                require(1 <= value < 2**31, name, "from 1 to 2147483647")
        heads, kv_heads = self.num_attention_heads, getattr(self, "num_key_value_heads", None)
        require(
            kv_heads is None or heads % kv_heads == 0,
            "num_key_value_heads",
            f"a divisor of num_attention_heads={heads}",
        )
        if getattr(self, "head_dim", None) is None:
            require(self.hidden_size % heads == 0, "hidden_size", f"a multiple of num_attention_heads={heads}")
        for experts in ("num_experts", "num_local_experts"):
            if hasattr(self, experts):
                few = self.num_experts_per_tok <= getattr(self, experts)
                require(few, "num_experts_per_tok", f"no more than {experts}")
        if hasattr(self, "vocab_size"):
            pad, size = self.pad_token_id, self.vocab_size
            require(pad is None or -size <= pad < size, "pad_token_id", "less than vocab_size")
        act = "hidden_act" if hasattr(self, "hidden_act") else "hidden_activation"
        require(getattr(self, act) in ACT2FN, act, "an activation of transformers, such as 'silu'")
        require(self.initializer_range <= 1, "initializer_range", "from 0 to 1")
        for name in (field.name for field in fields(self) if field.name.endswith(("dropout", "dropout_prob"))):
            dropout = getattr(self, name)
            require(dropout is not None and 0 <= dropout <= 1, name, "from 0 to 1")
        for name in ("rms_norm_eps", "layer_norm_eps"):
            require(getattr(self, name, 1) > 0, name, "more than 0, or a row of zeros becomes NaN")
        require(getattr(self, "logits_scaling", 1) > 0, "logits_scaling", "more than 0, for it divides the logits")
        ropes = getattr(self, "rope_parameters", None) or {}
        for rope in [part for part in ropes.values() if isinstance(part, dict)] or [ropes]:  # maybe by kind of layer
            self._validate_rope_numbers(rope, require)

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r} of {type(self).__name__} must be {rule}.")

    def _validate_rope_numbers(self, rope: dict[str, Any], require: Callable[[bool, str, str], None]) -> None:
        known = rope.get("rope_type", "default") in ("default", *ROPE_INIT_FUNCTIONS)
        require(known, "rope_parameters", f"of a rope_type that transformers has: {', '.join(ROPE_INIT_FUNCTIONS)}")
        for key, value in rope.items():
            usable = _in_reach(value) or (key not in _ROPE_NUMBERS and isinstance(value, bool | list | dict | None))
            require(
                usable or key in ("rope_type", "type"), "rope_parameters", f"of numbers from 1e-20 to 1e20 ({key})"
            )

    def _validate_variant(self, require: Callable[[bool, str, str], None]) -> None:
        require(1 <= self.sinkhorn_iterations <= 1000, "sinkhorn_iterations", "from 1 to 1000")
        require(
            1e-20 <= self.hc_eps <= 0.01, "hc_eps", "from 1e-20, below which sums that underflow give NaN, to 0.01"
        )
        require(_in_reach(self.gate_init), "gate_init", "from 1e-20 to 1e20; at 0, the dynamic part never learns")
        if self.stream_reduction == "gated":
            require(self.num_streams > 1, "num_streams", "2 or more with stream_reduction='gated', a weight for each")
        if self.connection in ("dynamic", "static"):
            return
        variant, streams = f"with connection={self.connection!r}", self.num_streams
        if self.connection == "frac":
            require(
                self.hidden_size % streams == 0,
                "num_streams",
                f"a divisor of hidden_size={self.hidden_size} {variant}",
            )
            require(
                self.stream_reduction != "gated",
                "stream_reduction",
                f"'sum' or 'mean' {variant}, where none is needed",
            )
            return
        require(self.use_tanh, "use_tanh", f"true {variant}, which has no tanh to leave out")
        require(streams > 1, "num_streams", f"2 or more {variant}, whose reads are sigmoids and never 1")
        if self.connection == "mhc_lite":
            require(
                streams <= 4, "num_streams", f"at most 4 {variant}, which has a weight for each of N! permutations"
            )
        if self.connection == "kromhc":
            require(streams & (streams - 1) == 0, "num_streams", f"a power of 2 {variant}, such as 2, 4 or 8")

    def validate_rope(self) -> None:
        """Upstream's, with a ValueError where it has a KeyError: a number that the kind of RoPE needs is missing."""
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Upstream's, which also reads the residual parent's configuration, and rejects any other model's."""
        try:
            config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            model_type = config_dict.get("model_type")
        except (AttributeError, TypeError) as error:  # of JSON that is no object
            raise ValueError(f"The config.json of {pretrained_model_name_or_path} is damaged ({error}).") from error
        if not config_dict:
            raise ValueError(f"{pretrained_model_name_or_path} has no config.json, so it is not a model checkpoint.")
        if model_type not in (cls.model_type, cls.parent_model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} has model_type={model_type!r}, which {cls.__name__} cannot read: it "
                f"takes {cls.model_type!r} or its residual parent {cls.parent_model_type!r}. Load it with the class "
                "of its own architecture."
            )
        return config_dict | {"model_type": cls.model_type}, kwargs


_ALL_HEADS = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _auto_classes(file: str, family: str, *heads: str) -> dict[str, str]:
    """Returns a family's classes by Auto class; a head is the end of its class's name, as "ForCausalLM"."""
    return {
        "AutoConfig": f"configuration_hc.{family}Config",
        "AutoModel": f"{file}.{family}Model",
        **{f"AutoModel{head}": f"{file}.{family}{head}" for head in heads},
    }


@strict
class HCLlamaConfig(HyperConnectionConfigMixin, LlamaConfig):
    """Configuration of Llama with hyper-connections: `LlamaConfig` plus `HyperConnectionConfigMixin`.

    Example:
        >>> config = HCLlamaConfig(hidden_size=512, num_hidden_layers=8, num_streams=4, connection="dynamic")
    """

    model_type = "hc_llama"
    parent_model_type = "llama"
    auto_classes = _auto_classes("modeling_hc_llama", "HCLlama", *_ALL_HEADS)


@strict
class HCMistralConfig(HyperConnectionConfigMixin, MistralConfig):
    """Configuration of Mistral with hyper-connections: `MistralConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_mistral"
    parent_model_type = "mistral"
    auto_classes = _auto_classes("modeling_hc_mistral", "HCMistral", *_ALL_HEADS)


@strict
class HCOlmoConfig(HyperConnectionConfigMixin, OlmoConfig):
    """Configuration of OLMo with hyper-connections: `OlmoConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_olmo"
    parent_model_type = "olmo"
    auto_classes = _auto_classes("modeling_hc_olmo", "HCOlmo", "ForCausalLM", "ForSequenceClassification")


@strict
class HCOlmoeConfig(HyperConnectionConfigMixin, OlmoeConfig):
    """Configuration of OLMoE with hyper-connections: `OlmoeConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_olmoe"
    parent_model_type = "olmoe"
    auto_classes = _auto_classes("modeling_hc_olmoe", "HCOlmoe", "ForCausalLM")


@strict
class HCQwen2Config(HyperConnectionConfigMixin, Qwen2Config):
    """Configuration of Qwen2 with hyper-connections: `Qwen2Config` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_qwen2"
    parent_model_type = "qwen2"
    auto_classes = _auto_classes("modeling_hc_qwen2", "HCQwen2", *_ALL_HEADS)


@strict
class HCQwen3Config(HyperConnectionConfigMixin, Qwen3Config):
    """Configuration of Qwen3 with hyper-connections: `Qwen3Config` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_qwen3"
    parent_model_type = "qwen3"
    auto_classes = _auto_classes("modeling_hc_qwen3", "HCQwen3", *_ALL_HEADS)


@strict
class HCQwen3MoeConfig(HyperConnectionConfigMixin, Qwen3MoeConfig):
    """Configuration of Qwen3-MoE with hyper-connections: `Qwen3MoeConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_qwen3_moe"
    parent_model_type = "qwen3_moe"
    auto_classes = _auto_classes("modeling_hc_qwen3_moe", "HCQwen3Moe", *_ALL_HEADS)


@strict
class HCMixtralConfig(HyperConnectionConfigMixin, MixtralConfig):
    """Configuration of Mixtral with hyper-connections: `MixtralConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_mixtral"
    parent_model_type = "mixtral"
    auto_classes = _auto_classes("modeling_hc_mixtral", "HCMixtral", *_ALL_HEADS)


@strict
class HCOlmo2Config(HyperConnectionConfigMixin, Olmo2Config):
    """Configuration of OLMo 2 with hyper-connections: `Olmo2Config` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_olmo2"
    parent_model_type = "olmo2"
    auto_classes = _auto_classes("modeling_hc_olmo2", "HCOlmo2", "ForCausalLM", "ForSequenceClassification")


@strict
class HCOlmo3Config(HyperConnectionConfigMixin, Olmo3Config):
    """Configuration of OLMo 3 with hyper-connections: `Olmo3Config` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_olmo3"
    parent_model_type = "olmo3"
    auto_classes = _auto_classes("modeling_hc_olmo3", "HCOlmo3", "ForCausalLM", "ForSequenceClassification")


@strict
class HCGemma3TextConfig(HyperConnectionConfigMixin, Gemma3TextConfig):
    """Configuration of Gemma 3 (text) with hyper-connections: `Gemma3TextConfig` and `HyperConnectionConfigMixin`."""

    model_type = "hc_gemma3_text"
    parent_model_type = "gemma3_text"
    auto_classes = _auto_classes("modeling_hc_gemma3", "HCGemma3Text", "ForSequenceClassification") | {
        "AutoModelForCausalLM": "modeling_hc_gemma3.HCGemma3ForCausalLM"
    }


@strict
class HCGraniteConfig(HyperConnectionConfigMixin, GraniteConfig):
    """Configuration of Granite with hyper-connections: `GraniteConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_granite"
    parent_model_type = "granite"
    auto_classes = _auto_classes("modeling_hc_granite", "HCGranite", "ForCausalLM")


@strict
class HCSmolLM3Config(HyperConnectionConfigMixin, SmolLM3Config):
    """Configuration of SmolLM3 with hyper-connections: `SmolLM3Config` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_smollm3"
    parent_model_type = "smollm3"
    auto_classes = _auto_classes("modeling_hc_smollm3", "HCSmolLM3", *_ALL_HEADS)


@strict
class HCGPTNeoXConfig(HyperConnectionConfigMixin, GPTNeoXConfig):
    """Configuration of GPT-NeoX (Pythia) with hyper-connections: `GPTNeoXConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_gpt_neox"
    parent_model_type = "gpt_neox"
    auto_classes = _auto_classes("modeling_hc_gpt_neox", "HCGPTNeoX", *_ALL_HEADS)


@strict
class HCViTConfig(HyperConnectionConfigMixin, ViTConfig):
    """Configuration of ViT with hyper-connections: `ViTConfig` plus `HyperConnectionConfigMixin`."""

    model_type = "hc_vit"
    parent_model_type = "vit"
    auto_classes = _auto_classes("modeling_hc_vit", "HCViT", "ForImageClassification", "ForMaskedImageModeling")

    def validate_values(self) -> None:
        """Also validates the fields of images."""
        super().validate_values()
        require = self._require
        require(self.pooler_act in ACT2FN, "pooler_act", "an activation of transformers, such as 'tanh'")
        sizes = {name: _pair(getattr(self, name)) for name in ("image_size", "patch_size")}
        for name, pair in sizes.items():
            require(len(pair) == 2 and min(pair) > 0, name, "a positive number, or two, of pixels")
        fits = all(map(ge, sizes["image_size"], sizes["patch_size"]))
        require(fits, "patch_size", f"no more than image_size={self.image_size}")


def _pair(size: int | list[int] | tuple[int, int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def families() -> dict[str, Any]:
    """Returns the hyper-connected configuration classes by the model type of their residual parents."""
    return {family.parent_model_type: family for family in HyperConnectionConfigMixin.__subclasses__()}


for _config_class in families().values():
    register_names(_config_class)
