# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The same as `modeling-hc generate`: see modeling_hc/commands/generate.py."""

from modeling_hc.commands.generate import main

if __name__ == "__main__":
    main()
