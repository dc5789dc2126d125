"""Adagrad (Duchi, Hazan and Singer 2011): the gradient over the root of its sum of squares."""

from __future__ import annotations

from typing import ClassVar

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.optim.optimizer import Optimizer1State


class Adagrad(Optimizer1State):
    """Adagrad with its state in ``optim_bits`` bits; weight decay joins the gradient.

    Args: those of `Optimizer2State`.

    Raises:
        InvalidArgumentError: lr_decay or initial_accumulator_value is not 0.
    """

    _default_bits: ClassVar[int] = 32

    def __init__(
        self,
        params,
        lr=1e-2,
        lr_decay=0,
        weight_decay=0,
        initial_accumulator_value=0,
        eps=1e-10,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
    ):
        if lr_decay or initial_accumulator_value:
            raise InvalidArgumentError(
                f"Adagrad: lr_decay={lr_decay}, "
                f"initial_accumulator_value={initial_accumulator_value}",
                "Both must be 0.",
                "For a decay take a scheduler from torch.optim.lr_scheduler.",
            )
        super().__init__(
            "adagrad", params, lr, (0.0, 0.0), eps, weight_decay,
            self._fixed_bits(optim_bits, self._default_bits), args, min_8bit_size,
        )  # fmt: skip


class Adagrad8bit(Adagrad):
    """Adagrad with an 8-bit state."""

    _bits = _default_bits = 8

    def __init__(
        self,
        params,
        lr=1e-2,
        lr_decay=0,
        weight_decay=0,
        initial_accumulator_value=0,
        eps=1e-10,
        optim_bits=8,
        args=None,
        min_8bit_size=4096,
    ):
        super().__init__(
            params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, optim_bits, args,
            min_8bit_size,
        )  # fmt: skip


class Adagrad32bit(Adagrad):
    """Adagrad with a 32-bit state."""

    _bits = 32
