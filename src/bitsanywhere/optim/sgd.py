"""SGD with momentum (Polyak 1964): m = momentum * m + g, p = p - lr * m."""

from __future__ import annotations

from bitsanywhere.optim.optimizer import Optimizer1State


class SGD(Optimizer1State):
    """SGD with its momentum in ``optim_bits`` bits; weight decay joins the gradient.

    Args: those of `Optimizer2State`; dampening and nesterov have no effect and warn.
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
    ):
        self._warn_ignored(dampening=dampening, nesterov=nesterov)
        super().__init__(
            "momentum", params, lr, (momentum, dampening), 0.0, weight_decay, optim_bits, args,
            min_8bit_size,
        )  # fmt: skip


class SGD8bit(SGD):
    """SGD with an 8-bit momentum."""

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
    ):
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, self._fixed_bits(32), args,
            min_8bit_size,
        )  # fmt: skip


class SGD32bit(SGD8bit):
    """SGD with a 32-bit momentum."""

    _bits = 32
