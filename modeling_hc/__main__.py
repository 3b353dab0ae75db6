# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The command line of the package: `modeling-hc COMMAND ...` or `python -m modeling_hc COMMAND ...`."""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any

COMMANDS = {
    "train": "train a language model from a recipe, or on from a checkpoint",
    "finetune": "finetune a checkpoint to classify texts",
    "train-images": "train a ViT to classify images, from a recipe or on from a checkpoint",
    "train-diffusion": "train a class-conditional DiT to draw images",
    "convert": "give a residual checkpoint hyper-connections with the same outputs, or convert back",
    "generate": "let one or several models complete prompts",
    "evaluate": "compare models on HellaSwag, ARC and other tasks with lm-evaluation-harness",
    "analyze": "show what the connections of a checkpoint learned",
    "info": "count parameters, FLOPs and memory of recipes",
    "push": "upload a saved model to the Hugging Face Hub",
    "benchmark": "time and measure models beside the stock one",
    "experiment": "run grids of variants and seeds, and report them",
    "demo": "train, evaluate and compare a residual and a hyper-connected model in minutes",
}
UPSTREAM = {
    "serve": "serve models over an OpenAI-compatible API (`transformers serve`)",
    "chat": "chat with a served model (`transformers chat`)",
}


def main() -> Any:
    """Runs a command. Returns its exit status."""
    _, *arguments = sys.argv
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        sys.argv = [f"modeling-hc {name}", *arguments[1:]]
        try:
            module = import_module(f".commands.{name.replace('-', '_')}", __package__)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith(__package__):
                raise
            sys.exit(f"modeling-hc {name} needs {error.name}: pip install 'modeling-hc[all]'.")
        return module.main()
    if name in UPSTREAM:
        from transformers.cli.transformers import main as transformers_main

        return transformers_main()
    width = max(map(len, COMMANDS))
    usage = "usage: modeling-hc COMMAND [options]\n\nHyper-Connections for Hugging Face Transformers.\n\n"
    usage += "\n".join(f"  {command:<{width}}  {text}" for command, text in (COMMANDS | UPSTREAM).items())
    usage += "\n\n`modeling-hc COMMAND --help` lists the options of a command."
    if name in ("-h", "--help"):
        print(usage)
        return 0
    if name == "--version":
        print(version("modeling-hc"))
        return 0
    near = get_close_matches(name, COMMANDS | UPSTREAM, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    sys.exit(f"modeling-hc: there is no command {name!r}.{hint}\n\n{usage}")


if __name__ == "__main__":
    sys.exit(main())
