"""The arithmetic of every optimizer, once; the update ops and the tests of all kernels use it.

With g' = gnorm_scale * g, in float32 and elementwise (t is the step, counted from 1):

| rule | state | update u | times |
|---|---|---|---|
| adam, lamb | m = b1 m + (1-b1) g', v = b2 v + (1-b2) g'^2 | m / (sqrt(v) + eps c2) | lr c2 / c1 |
| ademamix | as adam, and n = b3 n + (1-b3) g' | (m/c1 + alpha n) / (sqrt(v)/c2 + eps) | lr |
| momentum, lars | m = g' if t is 1, else b1 m + g' | m | lr |
| rmsprop | v = b1 v + (1-b1) g'^2 | g' / (sqrt(v) + eps) | lr |
| adagrad | v = v + g'^2 | g' / (sqrt(v) + eps) | lr |
| lion | m = b2 m + (1-b2) g' | sign(b1 m_old + (1-b1) g') | lr |

with c1 = 1 - b1^t and c2 = sqrt(1 - b2^t). The parameter becomes ``p * decay - clip * times * u``.
Weight decay is decoupled in adam, lamb, ademamix and lion: decay = 1 - lr * weight_decay. The
others add weight_decay * p to g' and have decay = 1. clip is 1 unless ``max_unorm`` is above 0:
then it is min(1, max_unorm * param_norm / norm), where the norm is that of u over the whole
tensor.

An element is skipped, which means that its parameter and its state stay as they are, if its
gradient is not finite, or if it is zero and ``skip_zeros`` is on.

Sources: Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019), AdEMAMix (Pagliardini et
al. 2024), Lion (Chen et al. 2023), LARS (You et al. 2017), LAMB (You et al. 2020); orders and
constants by measuring bitsandbytes 0.50.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Settings:
    """The numbers of one update; see the module."""

    beta1: float
    beta2: float
    beta3: float
    alpha: float
    eps: float
    weight_decay: float
    step: int
    lr: float
    gnorm_scale: float
    skip_zeros: bool

    @property
    def correction1(self) -> float:
        """c1 of the module."""
        return 1 - self.beta1**self.step

    @property
    def correction2(self) -> float:
        """c2 of the module."""
        return math.sqrt(1 - self.beta2**self.step)


class Moved(NamedTuple):
    """What a rule makes of one gradient.

    Attributes:
        update: u of the module.
        times: what u is multiplied with.
        state1: new first state.
        state2: new second state, or None.
    """

    update: torch.Tensor
    times: float
    state1: torch.Tensor
    state2: torch.Tensor | None


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        move: (g', state1, state2, settings) -> Moved.
        states: 1 or 2, how many state tensors it has.
        rows: 2 if the first state stacks two averages of the parameter's shape, else 1.
        decoupled: whether weight decay shrinks the parameter, instead of joining the gradient.
    """

    move: Callable[..., Moved]
    states: int = 1
    rows: int = 1
    decoupled: bool = False


def _mix(old: torch.Tensor, new: torch.Tensor, beta: float) -> torch.Tensor:
    return old * beta + (1 - beta) * new


def _adam(g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, h: Settings) -> Moved:
    m, v = _mix(m, g, h.beta1), _mix(v, g * g, h.beta2)
    update = m / (v.sqrt() + h.eps * h.correction2)
    return Moved(update, h.lr * h.correction2 / h.correction1, m, v)


def _ademamix(g: torch.Tensor, mn: torch.Tensor, v: torch.Tensor, h: Settings) -> Moved:
    m, n, v = _mix(mn[0], g, h.beta1), _mix(mn[1], g, h.beta3), _mix(v, g * g, h.beta2)
    update = (m / h.correction1 + h.alpha * n) / (v.sqrt() / h.correction2 + h.eps)
    return Moved(update, h.lr, torch.stack((m, n)), v)


def _momentum(g: torch.Tensor, m: torch.Tensor, _: None, h: Settings) -> Moved:
    m = g if h.step == 1 else m * h.beta1 + g
    return Moved(m, h.lr, m, None)


def _rmsprop(g: torch.Tensor, v: torch.Tensor, _: None, h: Settings) -> Moved:
    v = _mix(v, g * g, h.beta1)
    update = g / (v.sqrt() + h.eps)
    return Moved(update, h.lr, v, None)


def _adagrad(g: torch.Tensor, v: torch.Tensor, _: None, h: Settings) -> Moved:
    v = v + g * g
    update = g / (v.sqrt() + h.eps)
    return Moved(update, h.lr, v, None)


def _lion(g: torch.Tensor, m: torch.Tensor, _: None, h: Settings) -> Moved:
    update = _mix(m, g, h.beta1).sign()
    return Moved(update, h.lr, _mix(m, g, h.beta2), None)


RULES = {
    "adam": Rule(_adam, states=2, decoupled=True),
    "lamb": Rule(_adam, states=2, decoupled=True),
    "ademamix": Rule(_ademamix, states=2, rows=2, decoupled=True),
    "momentum": Rule(_momentum),
    "lars": Rule(_momentum),
    "rmsprop": Rule(_rmsprop),
    "adagrad": Rule(_adagrad),
    "lion": Rule(_lion, decoupled=True),
}


def clip(max_unorm: float, param_norm: float, norm: float) -> float:
    """The factor that keeps an update of this norm within max_unorm * param_norm."""
    allowed = max_unorm * param_norm
    return allowed / norm if max_unorm > 0 and norm > allowed else 1.0


def apply(
    name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    h: Settings,
    factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One update, computed in the dtype of state1 (float32, or float64 in tests).

    Args:
        name: key of `RULES`.
        g: gradient, shape (n,). p: parameter, shape (n,).
        state1: shape (n,), for ademamix (2, n). state2: shape (n,) or None.
        h: the settings. factor: `clip` of the module.

    Returns:
        New p, state1, u (0 where skipped) and state2.
    """
    rule = RULES[name]
    g, p = g.to(state1.dtype), p.to(state1.dtype)
    keep = torch.isfinite(g)
    if h.skip_zeros:
        keep = keep & (g != 0)
    scaled = torch.where(keep, g, 0.0) * h.gnorm_scale
    if not rule.decoupled:
        scaled = scaled + h.weight_decay * p
    decay = 1 - h.lr * h.weight_decay if rule.decoupled else 1.0
    moved = rule.move(scaled, state1, state2, h)
    new_p = torch.where(keep, p * decay - moved.update * (factor * moved.times), p)
    new1 = torch.where(keep, moved.state1, state1)
    new2 = moved.state2
    if new2 is not None and state2 is not None:
        new2 = torch.where(keep, new2, state2)
    return new_p, new1, torch.where(keep, moved.update, 0.0), new2
