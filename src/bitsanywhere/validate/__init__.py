"""Proof on a model: what 4 bits cost it, by suites of measurements with a pass line each.

A suite (`roundtrip`, `logits`, `training`, `carroll`, `speed`) measures columns: the bf16 model,
the same in 4 bits by this library, by an installed bitsandbytes, and another model for reference.
`run` plans and keeps results, `worker` measures in a process of its own, `present` shows.
"""

from bitsanywhere.validate.plan import SUITES, Plan, Settings
from bitsanywhere.validate.run import Outcome, validate

__all__ = ["SUITES", "Outcome", "Plan", "Settings", "validate"]
