"""AdEMAMix (Pagliardini, Ablin and Grangier 2024): AdamW with a second, slow average."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Optional

import torch

from bitsanywhere.optim.optimizer import Optimizer2State


class AdEMAMix(Optimizer2State):
    """AdEMAMix with states in ``optim_bits`` bits.

    Args: those of `Optimizer2State`; betas are those of the fast average, of the second moment
    and of the slow average, alpha is the slow average's weight.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: Optional[int] = None,
        t_beta3: Optional[int] = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        optim_bits: Literal[8, 32] = 32,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
    ):
        bits = self._fixed_bits(optim_bits)
        super().__init__(
            "ademamix", params, lr, betas, eps, weight_decay, bits, None, min_8bit_size,
            is_paged=is_paged, alpha=alpha, t_alpha=t_alpha, t_beta3=t_beta3,
        )  # fmt: skip


class AdEMAMix8bit(AdEMAMix):
    """AdEMAMix with 8-bit states."""

    _bits = 8

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: Optional[int] = None,
        t_beta3: Optional[int] = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
    ):
        super().__init__(
            params, lr, betas, alpha, t_alpha, t_beta3, eps, weight_decay,
            min_8bit_size=min_8bit_size, is_paged=is_paged,
        )  # fmt: skip


class AdEMAMix32bit(AdEMAMix8bit):
    """AdEMAMix with 32-bit states."""

    _bits = 32


class PagedAdEMAMix(AdEMAMix):
    """AdEMAMix with paged states in ``optim_bits`` bits."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: Optional[int] = None,
        t_beta3: Optional[int] = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        optim_bits: Literal[8, 32] = 32,
        min_8bit_size: int = 4096,
    ):
        super().__init__(
            params, lr, betas, alpha, t_alpha, t_beta3, eps, weight_decay, optim_bits,
            min_8bit_size, True,
        )  # fmt: skip


class PagedAdEMAMix8bit(AdEMAMix8bit):
    """AdEMAMix with paged 8-bit states."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: Optional[int] = None,
        t_beta3: Optional[int] = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ):
        super().__init__(
            params, lr, betas, alpha, t_alpha, t_beta3, eps, weight_decay, min_8bit_size, True
        )


class PagedAdEMAMix32bit(PagedAdEMAMix8bit):
    """AdEMAMix with paged 32-bit states."""

    _bits = 32
