# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The command lines, one file each: `main()` reads `sys.argv`."""
