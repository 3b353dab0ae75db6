# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What scripts note down of a run, and how they write it."""

import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modeling_hc


def write_json(path: Path, content: Any) -> None:
    """Writes a file at once: one that was there stays whole until the new one is. Lists of numbers take one line."""
    text = json.dumps(content, indent=2)
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
