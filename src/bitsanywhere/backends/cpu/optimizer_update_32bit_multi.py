"""optimizer_update_32bit_multi on CPUs; see `optimizer_update.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.optimizer_update import update
from bitsanywhere.ops.optimizer_rules import Settings
from bitsanywhere.ops.registry import Kernel


def run(
    optimizer_name: str,
    g: Sequence[torch.Tensor],
    p: Sequence[torch.Tensor],
    state1: Sequence[torch.Tensor],
    state2: Sequence[torch.Tensor],
    *numbers: float,
) -> None:
    """See `ops.optimizer_update_32bit_multi`."""
    update(optimizer_name, g, p, (state1, state2), Settings(*numbers))  # type: ignore[arg-type]


KERNEL = Kernel(run=run, why_not=lambda name, g, p, *rest: unserved(p[0].dtype))
