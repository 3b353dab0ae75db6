# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Grids of variants, sizes and seeds on equal data: what is run, and what is read from the results."""
