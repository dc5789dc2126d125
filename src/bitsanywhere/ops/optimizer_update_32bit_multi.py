"""optimizer_update_32bit_multi: `optimizer_update_32bit` of many tensors that share their numbers.

bitsandbytes has no such op: with it hundreds of small tensors take one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.ops import optimizer_checks as checks
from bitsanywhere.ops import registry
from bitsanywhere.ops.optimizer_update_32bit import fake, optimizer_update_32bit_torch

SCHEMA = (
    "(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, Tensor(c!)[] state2, "
    "float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, int step, "
    "float lr, float gnorm_scale, bool skip_zeros) -> ()"
)


def check(
    optimizer_name: str,
    g: Sequence[torch.Tensor],
    p: Sequence[torch.Tensor],
    state1: Sequence[torch.Tensor],
    state2: Sequence[torch.Tensor],
    *numbers: float,
) -> None:
    """Allowed: lists of one length, one dtype and one device, each entry as the single op wants
    it; state2 empty for rules with one state.
    """
    name = "optimizer_update_32bit_multi"
    rule = checks.check_rule(name, optimizer_name, len(state2) > 0)
    seconds = {"state2": state2} if rule.states == 2 else {}
    checks.check_lists(name, p, g=g, state1=state1, **seconds)
    for i in range(len(p)):
        second = state2[i] if rule.states == 2 else None
        checks.check_tensors(name, optimizer_name, g[i], p[i], state1[i], second, torch.float32)


def optimizer_update_32bit_multi_torch(
    optimizer_name: str,
    g: Sequence[torch.Tensor],
    p: Sequence[torch.Tensor],
    state1: Sequence[torch.Tensor],
    state2: Sequence[torch.Tensor],
    *numbers: float,
) -> None:
    """The op in plain torch, tensor by tensor."""
    for i in range(len(p)):
        second = state2[i] if state2 else None
        optimizer_update_32bit_torch(
            optimizer_name, g[i], p[i], state1[i], second, None, 0.0, 0.0, *numbers  # type: ignore[arg-type]
        )  # fmt: skip


OP = registry.register(
    "optimizer_update_32bit_multi",
    SCHEMA,
    check=check,
    fake=fake,
    reference=optimizer_update_32bit_multi_torch,
    place=1,
)
