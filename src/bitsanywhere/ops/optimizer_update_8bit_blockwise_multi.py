"""optimizer_update_8bit_blockwise_multi: `optimizer_update_8bit_blockwise` of many tensors that
share their numbers and codebooks.

bitsandbytes has no such op: with it hundreds of small tensors take one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.ops import optimizer_checks as checks
from bitsanywhere.ops import registry
from bitsanywhere.ops.optimizer_update_8bit_blockwise import (
    fake,
    optimizer_update_8bit_blockwise_torch,
)

SCHEMA = (
    "(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, Tensor(c!)[] state2, "
    "Tensor(d!)[] absmax1, Tensor(e!)[] absmax2, Tensor qmap1, Tensor? qmap2, float beta1, "
    "float beta2, float beta3, float alpha, float eps, float weight_decay, int step, float lr, "
    "float gnorm_scale, bool skip_zeros) -> ()"
)


def check(
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
    """Allowed: lists of one length, one dtype and one device, each entry as the single op wants
    it; state2 and absmax2 empty, qmap2 None for rules with one state.
    """
    name = "optimizer_update_8bit_blockwise_multi"
    rule = checks.check_rule(name, optimizer_name, len(state2) > 0)
    seconds = {"state2": state2, "absmax2": absmax2} if rule.states == 2 else {}
    checks.check_lists(name, p, g=g, state1=state1, absmax1=absmax1, **seconds)
    checks.check_maps(name, rule, p[0], qmap1, qmap2)
    for i in range(len(p)):
        second = (state2[i], absmax2[i]) if rule.states == 2 else (None, None)
        checks.check_tensors(name, optimizer_name, g[i], p[i], state1[i], second[0], torch.uint8)
        checks.check_8bit(name, rule, p[i], absmax1[i], second[1])


def optimizer_update_8bit_blockwise_multi_torch(
    optimizer_name: str,
    g: Sequence[torch.Tensor],
    p: Sequence[torch.Tensor],
    state1: Sequence[torch.Tensor],
    state2: Sequence[torch.Tensor],
    absmax1: Sequence[torch.Tensor],
    absmax2: Sequence[torch.Tensor],
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr: float,
    gnorm_scale: float,
    skip_zeros: bool,
) -> None:
    """The op in plain torch, tensor by tensor."""
    for i in range(len(p)):
        second = (state2[i], absmax2[i]) if state2 else (None, None)
        optimizer_update_8bit_blockwise_torch(
            optimizer_name, g[i], p[i], state1[i], second[0], beta1, beta2, beta3, alpha, eps,
            step, lr, qmap1, qmap2, absmax1[i], second[1], weight_decay, gnorm_scale, skip_zeros,
        )  # fmt: skip


OP = registry.register(
    "optimizer_update_8bit_blockwise_multi",
    SCHEMA,
    check=check,
    fake=fake,
    reference=optimizer_update_8bit_blockwise_multi_torch,
    place=1,
)
