# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The same as `modeling-hc info`: see modeling_hc/commands/info.py."""

from modeling_hc.commands.info import main

if __name__ == "__main__":
    main()
