# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The task `stdlib`: which of four pieces of code follows this one?

In HellaSwag's form, from the held-out files of the default text (the source of the running interpreter's standard
library), so that it needs no network. The three wrong endings come from elsewhere in the same file and have as many
characters as the true one: length alone tells nothing, and accuracy normalised by length would be the same number.
Scores compare only between runs on the same Python version, which decides the text.
"""

import random
import re
from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from modeling_hc.data import stdlib_files

CONTEXT = 480  # characters before the cut
ENDING = 120  # characters after the cut
ITEMS_PER_FILE = 24
ITEMS = 400


def load(**_: Any) -> DatasetDict:
    """Builds the items: always the same ones, in an order in which any first few are a fair sample.

    Returns:
        One split, "validation": columns `context`, `endings` (four) and `label` (which of them is true, from 0).
    """
    # Held-out files quote training files here and there.
    trained_on = {text[m.start() : m.start() + ENDING] for text in _texts("train") for m in re.finditer("\n", text)}
    rng = random.Random(0)
    items = [item for text in _texts("validation") for item in _items(text, trained_on, rng)]
    rng.shuffle(items)
    return DatasetDict(validation=Dataset.from_list(items[:ITEMS]))


def score(item: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Scores one item.

    Args:
        item: a row of the data set.
        results: for each ending its log-likelihood (in nats) after the context, and whether it is the greedy one.

    Returns:
        `acc`, and for `bits_per_byte` the log-likelihood and the bytes of the true ending.
    """
    loglikelihoods = [loglikelihood for loglikelihood, _ in results]
    label = item["label"]
    return {
        "acc": float(loglikelihoods.index(max(loglikelihoods)) == label),
        "bits_per_byte": (loglikelihoods[label], len(item["endings"][label].encode())),
    }


def _texts(split: Literal["train", "validation"]) -> Iterator[str]:
    for file in stdlib_files(split):
        yield file.read_text("utf-8", "replace")


def _items(text: str, trained_on: set[str], rng: random.Random) -> list[dict[str, Any]]:
    """Cuts a file before line breaks that lie far enough apart for no ending to be part of another's context."""
    line_end = re.compile(r"(?<=\S)\n")
    context_of = {}
    start = CONTEXT
    while match := line_end.search(text, start, len(text) - ENDING):
        cut = match.start()
        ending = text[cut : cut + ENDING]
        if ending not in trained_on and text.count(ending) == 1:
            context_of[ending] = text[cut - CONTEXT : cut]
        start = cut + ENDING + CONTEXT
    if len(context_of) < 4:
        return []
    items = []
    for true in rng.sample(list(context_of), min(ITEMS_PER_FILE, len(context_of))):
        endings = [true, *rng.sample([ending for ending in context_of if ending != true], 3)]
        rng.shuffle(endings)
        items.append({"context": context_of[true], "endings": endings, "label": endings.index(true)})
    return items
