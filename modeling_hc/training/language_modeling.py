# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""An `evaluate` metric for language models: loss, perplexity, bits per byte and token accuracy."""

import math

import evaluate
import numpy as np
from datasets import Features, Value


class LanguageModeling(evaluate.Metric):
    """Turns sums over blocks of text into the numbers one reads.

    `compute` takes one entry a block: `nll`, its negative log-likelihood in nats; `correct`, how many of its tokens
    were the likeliest; `tokens`, how many were predicted. And for the whole held-out text `tokens_per_byte`: bits per
    byte do not depend on the tokenizer, so they compare models with different ones.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description=self.__doc__,
            features=Features({"nll": Value("float64"), "correct": Value("float64"), "tokens": Value("float64")}),
        )

    def _compute(
        self, nll: list[float], correct: list[float], tokens: list[float], tokens_per_byte: float
    ) -> dict[str, float]:
        loss = float(np.sum(nll) / np.sum(tokens))
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": loss / math.log(2) * tokens_per_byte,
            "token_accuracy": float(np.sum(correct) / np.sum(tokens)),
        }
