# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The same as `modeling-hc evaluate`: see modeling_hc/commands/evaluate.py."""

from modeling_hc.commands.evaluate import main

if __name__ == "__main__":
    main()
