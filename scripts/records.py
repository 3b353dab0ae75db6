# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What scripts note down of a run, and how they write it."""

import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import modeling_hc
from modeling_hc.model_card_hc import plain


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
    return yaml.load(text, _Loader)


def write_json(path: Path, content: Any) -> None:
    """Writes a file at once: one that was there stays whole until the new one is. Lists of numbers take one line.

    The content is made `plain`: the file is strict JSON.
    """
    text = json.dumps(plain(content), indent=2, allow_nan=False)
    text = re.sub(r"\[\s+(-?[\d.eE+-]+(?:,\s+-?[\d.eE+-]+)*)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"_{path.name}.part")
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of this package, Python, and others."""
    return {
        "modeling_hc": modeling_hc.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
