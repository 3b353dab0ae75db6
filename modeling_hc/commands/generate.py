# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Streams completions of the same prompts from one or more models.

modeling-hc generate MODEL [MODEL ...] --prompt "def main(" [--prompt ...] [--max_new_tokens 64]
"""

import argparse
import sys

import torch
import transformers
from transformers import TextStreamer, set_seed

from ..records import program
from .loading import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, or the name of a model on the Hub")
    parser.add_argument("--prompt", action="append", help="text to continue; may be given repeatedly")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="(64)")
    parser.add_argument("--temperature", type=float, default=0.8, help="(0.8); 0 always takes the likeliest token")
    parser.add_argument("--top_p", type=float, default=0.95, help="(0.95)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    arguments = parser.parse_args()
    if not arguments.prompt:  # argparse would report a missing `required` flag, and not the misspelt one
        parser.error("--prompt is missing: give a text to continue")
    for name, valid in {
        "max_new_tokens": arguments.max_new_tokens >= 1,
        "temperature": arguments.temperature >= 0,
        "top_p": 0 < arguments.top_p <= 1,
        "prompt": all(arguments.prompt),
    }.items():
        if not valid:
            parser.error(f"--{name} cannot be {getattr(arguments, name)!r}")

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sampling = {"do_sample": False}
    if arguments.temperature:
        sampling = {"do_sample": True, "temperature": arguments.temperature, "top_p": arguments.top_p}
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    for name in arguments.models:
        try:
            model, tokenizer = load(name)
        except ValueError as error:
            sys.exit(f"{program()}: {error}")
        model.to(device)
        for prompt in arguments.prompt:
            print(f"--- {name}", flush=True)
            set_seed(arguments.seed)
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(device)
            model.generate(
                **inputs, streamer=TextStreamer(tokenizer), max_new_tokens=arguments.max_new_tokens, **sampling
            )


if __name__ == "__main__":
    main()
