# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Prints what modeling_hc.health costs beside training steps: `python -m campaigns.health_cost`."""

import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from modeling_hc import HCLlamaConfig
from modeling_hc.health import health


def main(rounds: int = 15, logging_steps: int = 10) -> None:
    """Times a step of a Llama-DHCx4 of 8 layers of 512 on a batch of 4 x 256, and `health` on 2 x 128, in turns."""
    config = HCLlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(config.vocab_size, (4, 256))
    steps, healths = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        middle = time.perf_counter()
        health(model, ids[:2, :128])
        steps.append(middle - start)
        healths.append(time.perf_counter() - middle)
    step, taken = statistics.median(steps[2:]), statistics.median(healths[2:])
    print(f"a step {step:.3f} s, health {taken:.3f} s (medians of {rounds - 2}, {torch.get_num_threads()} threads):")
    print(f"{taken / step:.2f} of a step, {taken / step / logging_steps:.1%} with logging_steps={logging_steps}")


if __name__ == "__main__":
    main()
