"""optimizer_update_32bit on CPUs; see `optimizer_update.py`."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.optimizer_update import update
from bitsanywhere.ops.optimizer_rules import Settings
from bitsanywhere.ops.optimizer_update_32bit import clip_factor
from bitsanywhere.ops.registry import Kernel


def run(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    unorm_vec: torch.Tensor | None,
    max_unorm: float,
    param_norm: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """See `ops.optimizer_update_32bit`; the norm for a limit is taken in plain torch."""
    h = Settings(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros)
    factor = 1.0
    if max_unorm > 0:
        factor = clip_factor(optimizer_name, g, p, state1, state2, h, max_unorm, param_norm)
    second = [] if state2 is None else [state2]
    update(optimizer_name, [g], [p], ([state1], second), h, factor)


KERNEL = Kernel(run=run, why_not=lambda name, g, p, *rest: unserved(p.dtype))
