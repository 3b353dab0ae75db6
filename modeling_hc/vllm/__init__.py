# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A plugin for vLLM, which finds it by the entry point `vllm.general_plugins` where this package is installed."""

from vllm import ModelRegistry

import modeling_hc


def register() -> None:
    """Registers our models with the Auto classes and our causal models with vLLM, in each of its processes."""
    for name in modeling_hc.__all__:
        if name.endswith("ForCausalLM"):
            experts = "MoE" if "Olmoe" in name else ""
            ModelRegistry.register_model(name, f"modeling_hc.vllm.models:HC{experts}ForCausalLM")
