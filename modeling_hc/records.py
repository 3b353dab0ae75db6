# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What scripts note down of a run, and how they write it."""

import json
import os
import platform
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from . import __version__
from .model_card_hc import plain


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 has them: for 1.1, `3e-4` is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Returns what a safe YAML loader reads, with numbers as people write them.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically. Lists of numbers take one line.

    The content is made `plain`: the file is strict JSON.
    """
    text = json.dumps(plain(content), indent=2, allow_nan=False)
    text = re.sub(r"\[\s+(-?[\d.eE+-]+(?:,\s+-?[\d.eE+-]+)*)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: one that was there stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"_{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def program() -> str:
    """Returns the name of the program that runs, for its messages."""
    return Path(sys.argv[0]).name


def command_line(processes: int = 1) -> str:
    """Returns the command that runs, as one types it."""
    program, *arguments = sys.argv
    words = program.split() if program.startswith("modeling-hc ") else ["python", program]
    if processes > 1:
        module = ["-m", f"modeling_hc.commands.{words[1]}"] if words[0] != "python" else words[1:]
        words = ["accelerate", "launch", f"--num_processes={processes}", *module]
    return shlex.join([*words, *arguments])


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of this package, Python, and others."""
    return {
        "modeling_hc": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
