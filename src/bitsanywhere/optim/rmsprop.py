"""RMSprop (Tieleman and Hinton 2012): the gradient over the root of its mean square."""

from __future__ import annotations

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.optim.optimizer import Optimizer1State


class RMSprop(Optimizer1State):
    """RMSprop with its state in ``optim_bits`` bits; weight decay joins the gradient.

    Args: those of `Optimizer2State`; alpha is the mean square's decay, momentum has no effect and
    warns.

    Raises:
        InvalidArgumentError: centered.
    """

    def __init__(
        self,
        params,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0,
        momentum=0,
        centered=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
    ):
        if centered:
            raise InvalidArgumentError(
                "RMSprop: centered=True", "The gradient's mean is not kept.", "Leave it out."
            )
        self._warn_ignored(momentum=momentum)
        super().__init__(
            "rmsprop", params, lr, (alpha, momentum), eps, weight_decay, optim_bits, args,
            min_8bit_size,
        )  # fmt: skip


class RMSprop8bit(RMSprop):
    """RMSprop with an 8-bit state."""

    _bits = 8

    def __init__(
        self,
        params,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0,
        momentum=0,
        centered=False,
        args=None,
        min_8bit_size=4096,
    ):
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered, self._fixed_bits(32), args,
            min_8bit_size,
        )  # fmt: skip


class RMSprop32bit(RMSprop8bit):
    """RMSprop with a 32-bit state."""

    _bits = 32
