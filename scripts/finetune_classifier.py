# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The same as `modeling-hc finetune`: see modeling_hc/commands/finetune.py."""

import sys

from modeling_hc.commands.finetune import main

if __name__ == "__main__":
    sys.exit(main())
