"""The numbers that the optimizer kernels read: one float32 each, computed in float64."""

from __future__ import annotations

import math
from array import array

from bitsanywhere.ops.optimizer_rules import RULES, Settings

_NAMES = (
    "beta1", "rest1", "beta2", "rest2", "beta3", "rest3", "alpha", "eps", "fast", "root",
    "times", "still", "decay", "coupled", "scale", "least",
)  # fmt: skip
PLACES = {name: 4 * i for i, name in enumerate(_NAMES)}
"""Byte offset of each: rest is 1 - beta, fast 1 / c1 and root 1 / c2 (see `ops.optimizer_rules`),
times the negative factor of the update, still the zero whose product with times is -0 (to add that
keeps every number, either zero included), coupled the weight decay that joins the gradient, scale
that of the gradient, least the smallest magnitude of a gradient that is not skipped."""
# lamb and lars are adam and momentum with a limit, which is in `times`.
SAME = {"lamb": "adam", "lars": "momentum"}
_SMALLEST = 2.0**-149


def numbers(name: str, h: Settings, factor: float) -> array[float]:
    """The numbers of one update.

    Args:
        name: key of `RULES`.
        h: its settings.
        factor: what the update's norm is limited by; 1 for nothing.
    """
    rule, base = RULES[name], SAME.get(name, name)
    beta1 = 0.0 if base == "momentum" and h.step == 1 else h.beta1
    times, eps, fast, root = h.lr, h.eps, 0.0, 0.0
    if base == "adam":
        times, eps = h.lr * h.correction2 / h.correction1, h.eps * h.correction2
    elif base == "ademamix":
        fast, root = 1 / h.correction1, 1 / h.correction2
    values = (
        beta1, 1 - beta1, h.beta2, 1 - h.beta2, h.beta3, 1 - h.beta3, h.alpha, eps, fast, root,
        -factor * times,
        math.copysign(0.0, times),
        1 - h.lr * h.weight_decay if rule.decoupled else 1.0,
        0.0 if rule.decoupled else h.weight_decay,
        h.gnorm_scale,
        _SMALLEST if h.skip_zeros else 0.0,
    )  # fmt: skip
    return array("f", values)
