# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What the training commands are made of: their arguments, the safe Trainer, the run folder, metrics."""
