"""LARS (You, Gitman and Ginsburg 2017): SGD whose update is limited by the parameter's norm."""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.optim.optimizer import Optimizer1State


class LARS(Optimizer1State):
    """LARS with its momentum in ``optim_bits`` bits; weight decay joins the gradient.

    Args: those of `Optimizer2State`; dampening and nesterov have no effect and warn. max_unorm
    counts for parameters with 32-bit states only, as in bitsandbytes.
    """

    def __init__(
        self,
        params,
        lr,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        max_unorm=0.02,
    ):
        self._warn_ignored(dampening=dampening, nesterov=nesterov)
        super().__init__(
            "lars", params, lr, (momentum, dampening), 0.0, weight_decay, optim_bits, args,
            min_8bit_size, max_unorm,
        )  # fmt: skip


class LARS8bit(LARS):
    """LARS with an 8-bit momentum; max_unorm then counts for small parameters only."""

    _bits = 8

    def __init__(
        self,
        params,
        lr,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        args=None,
        min_8bit_size=4096,
        max_unorm=0.02,
    ):
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, self._fixed_bits(32), args,
            min_8bit_size, max_unorm,
        )  # fmt: skip


class LARS32bit(LARS8bit):
    """LARS with a 32-bit momentum."""

    _bits = 32


class PytorchLARS(torch.optim.Optimizer):
    """LARS in plain torch, with dampening and Nesterov's momentum.

    Raises:
        InvalidArgumentError: a setting is negative, or nesterov without momentum or with
            dampening.
    """

    def __init__(
        self,
        params,
        lr=0.01,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        max_unorm=0.02,
    ):
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        for name, value in numbers.items():
            if value < 0:
                raise InvalidArgumentError(f"PytorchLARS: {name} is {value}", "0 is the least.")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise InvalidArgumentError(
                f"PytorchLARS: nesterov with momentum={momentum}, dampening={dampening}",
                "Nesterov's momentum needs momentum above 0 and no dampening.",
            )
        rest = {"dampening": dampening, "nesterov": nesterov, "max_unorm": max_unorm}
        super().__init__(params, {**numbers, **rest})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: torch.Tensor, group: dict) -> None:
        assert p.grad is not None
        update = p.grad + group["weight_decay"] * p
        if group["momentum"]:
            state = self.state[p]
            if "momentum_buffer" in state:
                average = state["momentum_buffer"]
                average.mul_(group["momentum"]).add_(update, alpha=1 - group["dampening"])
            else:
                average = state["momentum_buffer"] = update.clone()
            update = update + group["momentum"] * average if group["nesterov"] else average
        factor = 1.0
        if group["max_unorm"] > 0:
            allowed = group["max_unorm"] * torch.linalg.vector_norm(p)
            factor = (allowed / torch.linalg.vector_norm(update)).nan_to_num(1.0).clamp(max=1.0)
        p.sub_(update * (group["lr"] * factor))
