"""optimizer_update_8bit_blockwise_multi on CPUs; see `optimizer_update.py`."""

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
    absmax1: Sequence[torch.Tensor],
    absmax2: Sequence[torch.Tensor],
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    *numbers: float,
) -> None:
    """See `ops.optimizer_update_8bit_blockwise_multi`."""
    codes = [qmap1] if qmap2 is None else [qmap1, qmap2]
    states = (state1, state2, absmax1, absmax2)
    update(optimizer_name, g, p, states, Settings(*numbers), codes=codes)  # type: ignore[arg-type]


KERNEL = Kernel(run=run, why_not=lambda name, g, p, *rest: unserved(p[0].dtype))
