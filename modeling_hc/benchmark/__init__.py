# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What `modeling-hc benchmark` is made of."""
