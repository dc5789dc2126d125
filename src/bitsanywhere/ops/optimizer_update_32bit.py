"""optimizer_update_32bit: one optimizer step of one tensor with float32 states, in place.

The arithmetic is in `optimizer_rules`; it is done in float32, the parameter is rounded once to its
dtype at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitsanywhere.ops import optimizer_checks as checks
from bitsanywhere.ops import registry
from bitsanywhere.ops.optimizer_rules import RULES, Settings, apply, clip

SCHEMA = (
    "(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, Tensor(a3!)? state2, "
    "Tensor(a4!)? unorm_vec, float max_unorm, float param_norm, float beta1, float beta2, "
    "float beta3, float alpha, float eps, float weight_decay, int step, float lr, "
    "float gnorm_scale, bool skip_zeros=False) -> ()"
)
_CHUNK = 1 << 18


def check(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    unorm_vec: torch.Tensor | None,
    max_unorm: float,
    param_norm: float,
    *numbers: float,
) -> None:
    """Allowed: contiguous g and p of one float dtype, contiguous float32 states of p's size
    (AdEMAMix: state1 of twice that), unorm_vec of one float32 element where max_unorm is above 0.
    """
    name = "optimizer_update_32bit"
    checks.check_tensors(name, optimizer_name, g, p, state1, state2, torch.float32)
    if max_unorm > 0:
        checks.check_unorm(name, p, unorm_vec)


def fake(*args: object) -> None:
    """Nothing is returned."""


def optimizer_update_32bit_torch(
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
    """The op in plain torch, in chunks; unorm_vec is scratch space for kernels and not used."""
    h = Settings(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros)
    factor = 1.0
    if max_unorm > 0:
        factor = clip_factor(optimizer_name, g, p, state1, state2, h, max_unorm, param_norm)
    for part in _parts(g, p, state1, state2, RULES[optimizer_name].rows):
        new_p, new1, _, new2 = apply(optimizer_name, *part, h, factor)
        for tensor, new in zip(part[1:], (new_p, new1, new2), strict=True):
            if tensor is not None and new is not None:
                tensor.copy_(new)


def clip_factor(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    h: Settings,
    max_unorm: float,
    param_norm: float,
) -> float:
    """What the update must be multiplied with to keep its norm within the limit; moves nothing."""
    total = 0.0
    for part in _parts(g, p, state1, state2, RULES[optimizer_name].rows):
        total += float(apply(optimizer_name, *part, h)[2].double().square().sum())
    return clip(max_unorm, param_norm, total**0.5)


def _parts(
    g: torch.Tensor, p: torch.Tensor, state1: torch.Tensor, state2: torch.Tensor | None, rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Views of the same elements of all four, chunk by chunk."""
    first = state1.view(2, p.numel()) if rows == 2 else state1.view(-1)
    for start in range(0, p.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        second = None if state2 is None else state2.view(-1)[part]
        yield g.view(-1)[part], p.view(-1)[part], first[..., part], second


OP = registry.register(
    "optimizer_update_32bit",
    SCHEMA,
    check=check,
    fake=fake,
    reference=optimizer_update_32bit_torch,
    place=1,
)
