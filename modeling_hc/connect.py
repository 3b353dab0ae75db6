# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""One call for every family: a residual checkpoint, or a residual model in memory, becomes hyper-connected."""

from dataclasses import fields
from os import PathLike
from sys import modules
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from .configuration_hc import HyperConnectionConfigMixin, families
from .loading_hc import check_has_config, unreadable
from .modeling_hc_common import HCDecoderLayerMixin, HCFinalNormMixin, HCPreTrainedModelMixin

# The arguments of from_pretrained that say where a configuration is.
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def hyper_connect(
    source: str | PathLike | PreTrainedModel, auto_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Makes a residual model hyper-connected; until it is trained, it computes what it computed.

    Args:
        source: a residual checkpoint, as a folder or a name on the Hub; or a residual model in memory, which is
            changed in place, as by `peft.get_peft_model`, without a copy of any weight.
        auto_class: the Auto class whose head a checkpoint gets. A model in memory keeps its own.
        **kwargs: fields of `HyperConnectionConfigMixin`, where `stream_reduction` is "mean" by default; and for a
            checkpoint whatever `from_pretrained` takes.

    Returns:
        The hyper-connected model; in memory, `source` itself.

    Raises:
        ValueError: no family of this package has such a model, or not with this head; it has hyper-connections
            already; or it is in a state in which hyper-connections cannot be added: quantized, wrapped by PEFT,
            offloaded, or sharded.
        OSError: there is no such checkpoint.
        TypeError: auto_class is none, or, in memory, an argument is no field of `HyperConnectionConfigMixin`.
    """
    if not hasattr(auto_class, "_model_mapping"):
        raise TypeError(
            f"auto_class={auto_class!r} is no Auto class of transformers, such as AutoModelForCausalLM. Name the "
            "other arguments, as in num_streams=4."
        )
    kwargs = {"stream_reduction": "mean"} | kwargs
    if isinstance(source, str | PathLike):
        if "subfolder" not in kwargs:
            check_has_config(source)
        try:
            config = AutoConfig.from_pretrained(source, **{name: kwargs[name] for name in _HUB if name in kwargs})
        except OSError as error:
            raise OSError(unreadable(source, error)) from error
        family = _family(config, str(source))
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(f"{source} is quantized (quantization_config): connect the model that it was made from.")
        if family not in auto_class._model_mapping:
            heads = ", ".join(name for name in family.auto_classes if name != "AutoConfig")
            raise ValueError(
                f"There is no {auto_class.__name__} of model_type={config.model_type!r}: give as second argument, "
                f"auto_class, one of {heads}."
            )
        try:
            return auto_class._model_mapping[family].from_pretrained(source, **kwargs)
        except ValueError as error:
            saved = f".HC{(config.architectures or [''])[0]}"
            own = next((name for name, path in family.auto_classes.items() if path.endswith(saved)), None)
            if own in (None, auto_class.__name__):
                raise
            raise ValueError(f"{error} To keep its head, give {own} as second argument, auto_class.") from error
    known = [field.name for field in fields(HyperConnectionConfigMixin)]
    if unknown := sorted(set(kwargs) - set(known)):
        raise TypeError(f"hyper_connect has no argument {unknown[0]!r} for a model in memory; there are {known}.")
    _require_plain(source)
    return _connect(source, **kwargs)


def _family(config: PreTrainedConfig, name: str) -> Any:
    """Returns the hyper-connected configuration class of a residual model."""
    known, model_type = families(), config.model_type
    if any(model_type == family.model_type for family in known.values()):
        raise ValueError(f"{name} has hyper-connections already (model_type={model_type!r}): load it as it is.")
    if model_type not in known:
        raise ValueError(
            f"{name} has model_type={model_type!r}, and there is no such family. There are "
            f"{', '.join(sorted(known))}. docs/architectures.md says which others fit; in a checkout, "
            f"`python -m campaigns.fits {model_type}` tries it."
        )
    return known[model_type]


def _require_plain(model: Any) -> None:
    """Rejects a model whose weights are not all here, as transformers made them."""
    name = type(model).__name__
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"{name} has adapters of PEFT: connect the model without them, then add them.")
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{name} is no model of transformers: give the model that it holds, a folder or a name.")
    known = getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None
    if known or any(".quantized." in type(module).__module__ for module in model.modules()):  # of torch.ao
        raise ValueError(f"{name} is quantized: connect the model that it was made from.")
    if any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters()):
        raise ValueError(f"{name} is sharded: connect it before DeepSpeed, FSDP or tensor parallelism has it.")
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if len(places) > 1 or any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{name} lies on several devices, or its weights are not in memory: connect it by its name, as "
            "hyper_connect(name, device_map=...)."
        )


def _connect(model: PreTrainedModel, **hc_fields: Any) -> PreTrainedModel:
    residual = model.config
    family = _family(residual, type(model).__name__)
    decoder_class, decoder = AutoModel._model_mapping[family], model.base_model
    ours = {c.__bases__[-1]: c for c in _classes(decoder_class)}
    norm = getattr(decoder, decoder_class.final_norm)
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for module in (*models, *decoder.layers, norm):
        if type(module) not in ours:
            raise ValueError(
                f"{type(module).__name__} is not upstream's class for model_type={residual.model_type!r}, or has no "
                "hyper-connected one. Connect a model of transformers' own classes."
            )
    config = _config(residual, family, **hc_fields)
    for module in model.modules():
        if getattr(module, "config", None) is residual:
            module.config = config
    for module in models:
        become(module, ours[type(module)])
        module._no_split_modules = set(type(module)._no_split_modules)
    vars(model).pop("_weight_conversions", None)  # of the residual checkpoint
    for i, layer in enumerate(decoder.layers):
        layer.__class__ = ours[type(layer)]
        with next(layer.parameters()).device:
            layer.connect(config, i)
        for connection in layer.blocks:
            getattr(layer, connection).train(layer.training)
    norm.__class__ = ours[type(norm)]
    with next(decoder.layers[-1].parameters()).device:
        norm.connect(config, **decoder.layers[0].hyper_connection_norm())
    for module in models:
        module.keep_stream_modules_in_fp32()
    return model


def become(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> None:
    """Gives a model another class, and enters it where upstream's constructor does for `output_hidden_states`."""
    model.__class__ = model_class
    # The registry of newer transformers takes models for keys, and stores names as the older ones do.
    dict.__setitem__(_CAN_RECORD_REGISTRY, str(model_class), model._can_record_outputs)


def _config(residual: PreTrainedConfig, family: Any, **hc_fields: Any) -> PreTrainedConfig:
    """Returns a configuration with all values of a residual one, and what upstream keeps beside them."""
    values = residual.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "auto_map"):
        values.pop(name, None)
    config = family(**values | hc_fields)
    config._name_or_path = residual._name_or_path
    for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
        if hasattr(residual, name):
            setattr(config, name, getattr(residual, name))
    return config


def _classes(decoder_class: Any) -> list[Any]:
    """Returns the hyper-connected classes of a family; upstream's is the last base of each."""
    file = decoder_class.__module__
    mixins = (HCDecoderLayerMixin, HCFinalNormMixin, HCPreTrainedModelMixin)
    found = [value for value in vars(modules[file]).values() if isinstance(value, type) and value.__module__ == file]
    return [value for value in found if issubclass(value, mixins)]
