"""AdamW (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from bitsanywhere.optim.optimizer import Optimizer2State


class AdamW(Optimizer2State):
    """AdamW with states in ``optim_bits`` bits.

    Args: those of `Optimizer2State`; amsgrad has no effect and warns.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
    ):
        self._warn_ignored(amsgrad=amsgrad)
        super().__init__(
            "adam", params, lr, betas, eps, weight_decay, self._fixed_bits(optim_bits), args,
            min_8bit_size, is_paged=is_paged,
        )  # fmt: skip


class AdamW8bit(AdamW):
    """AdamW with 8-bit states."""

    _bits = 8


class AdamW32bit(AdamW):
    """AdamW with 32-bit states."""

    _bits = 32


class PagedAdamW(AdamW):
    """AdamW with paged states in ``optim_bits`` bits."""

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, optim_bits, args, min_8bit_size, True
        )


class PagedAdamW8bit(PagedAdamW):
    """AdamW with paged 8-bit states."""

    _bits = 8


class PagedAdamW32bit(PagedAdamW):
    """AdamW with paged 32-bit states."""

    _bits = 32
