"""LAMB (You et al. 2020): Adam whose update is limited by the norm of the parameter."""

from __future__ import annotations

from bitsanywhere.optim.optimizer import Optimizer2State


class LAMB(Optimizer2State):
    """LAMB with states in ``optim_bits`` bits.

    Args: those of `Optimizer2State`; bias_correction, amsgrad and adam_w_mode have no effect and
    warn where they ask for something else than the default. max_unorm counts for parameters
    with 32-bit states only, as in bitsandbytes.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        adam_w_mode=True,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        max_unorm=1.0,
    ):
        self._warn_ignored(
            amsgrad=amsgrad, no_bias_correction=not bias_correction, no_adam_w_mode=not adam_w_mode
        )
        super().__init__(
            "lamb", params, lr, betas, eps, weight_decay, optim_bits, args, min_8bit_size, max_unorm
        )


class LAMB8bit(LAMB):
    """LAMB with 8-bit states; max_unorm then counts for small parameters only."""

    _bits = 8

    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        adam_w_mode=True,
        args=None,
        min_8bit_size=4096,
        max_unorm=1.0,
    ):
        super().__init__(
            params, lr, bias_correction, betas, eps, weight_decay, amsgrad, adam_w_mode,
            self._fixed_bits(32), args, min_8bit_size, max_unorm,
        )  # fmt: skip


class LAMB32bit(LAMB8bit):
    """LAMB with 32-bit states."""

    _bits = 32
