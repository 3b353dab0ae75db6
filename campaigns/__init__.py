# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Long programs that attack the package: `python -m campaigns.faults`, `.bad_input`, `.layouts`; see the Makefile."""

import os

# Read when torch and huggingface_hub are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
