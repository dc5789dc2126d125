"""Adam (Kingma and Ba 2015). A weight decay is decoupled, as in AdamW."""

from __future__ import annotations

from bitsanywhere.optim.optimizer import Optimizer2State


class Adam(Optimizer2State):
    """Adam with states in ``optim_bits`` bits.

    Args: those of `Optimizer2State`; amsgrad has no effect and warns.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
    ):
        self._warn_ignored(amsgrad=amsgrad)
        super().__init__(
            "adam", params, lr, betas, eps, weight_decay, self._fixed_bits(optim_bits), args,
            min_8bit_size, is_paged=is_paged or self._paged,
        )  # fmt: skip


class Adam8bit(Adam):
    """Adam with 8-bit states."""

    _bits = 8


class Adam32bit(Adam):
    """Adam with 32-bit states."""

    _bits = 32


class PagedAdam(Adam):
    """Adam with paged states in ``optim_bits`` bits."""

    _paged = True


class PagedAdam8bit(PagedAdam):
    """Adam with paged 8-bit states."""

    _bits = 8


class PagedAdam32bit(PagedAdam):
    """Adam with paged 32-bit states."""

    _bits = 32
