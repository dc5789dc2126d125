"""optimizer_update_8bit_blockwise on CPUs; see `optimizer_update.py`."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.optimizer_update import update
from bitsanywhere.ops.optimizer_rules import Settings
from bitsanywhere.ops.registry import Kernel


def run(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    absmax1: torch.Tensor,
    absmax2: torch.Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """See `ops.optimizer_update_8bit_blockwise`."""
    h = Settings(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros)
    states = [[] if tensor is None else [tensor] for tensor in (state1, state2, absmax1, absmax2)]
    codes = [code for code in (qmap1, qmap2) if code is not None]
    update(optimizer_name, [g], [p], states, h, codes=codes)


KERNEL = Kernel(run=run, why_not=lambda name, g, p, *rest: unserved(p.dtype))
