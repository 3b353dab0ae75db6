# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""An `evaluate` metric for classifiers: accuracy and macro-averaged F1."""

import evaluate
import numpy as np
from datasets import Features, Value


class Classification(evaluate.Metric):
    """Accuracy, and the mean over the classes of the data of F1 = 2 TP / (2 TP + FP + FN)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description=self.__doc__,
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)  # type: ignore[assignment]
        f1 = [
            2 * np.sum((predictions == k) & (references == k)) / (np.sum(predictions == k) + np.sum(references == k))
            for k in np.union1d(predictions, references)
        ]
        return {"accuracy": float(np.mean(predictions == references)), "macro_f1": float(np.mean(f1))}
