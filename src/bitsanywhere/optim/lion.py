"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms")."""

from __future__ import annotations

from bitsanywhere.optim.optimizer import Optimizer1State


class Lion(Optimizer1State):
    """Lion with its state in ``optim_bits`` bits; weight decay is decoupled.

    Args: those of `Optimizer2State`.
    """

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
    ):
        super().__init__(
            "lion", params, lr, betas, 0.0, weight_decay, optim_bits, args, min_8bit_size,
            is_paged=is_paged,
        )  # fmt: skip


class Lion8bit(Lion):
    """Lion with an 8-bit state."""

    _bits = 8

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
    ):
        bits = self._fixed_bits(32)
        super().__init__(params, lr, betas, weight_decay, bits, args, min_8bit_size, is_paged)


class Lion32bit(Lion8bit):
    """Lion with a 32-bit state."""

    _bits = 32


class PagedLion(Lion):
    """Lion with a paged state in ``optim_bits`` bits."""

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
    ):
        super().__init__(params, lr, betas, weight_decay, optim_bits, args, min_8bit_size, True)


class PagedLion8bit(Lion8bit):
    """Lion with a paged 8-bit state."""

    def __init__(
        self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0, args=None, min_8bit_size=4096
    ):
        super().__init__(params, lr, betas, weight_decay, args, min_8bit_size, True)


class PagedLion32bit(PagedLion8bit):
    """Lion with a paged 32-bit state."""

    _bits = 32
