"""The settings of an optimizer: their check, and those that grow with the steps."""

from __future__ import annotations

import ast
import math
from typing import Any

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.optim.manager import MockArgs

# What an optimizer has beside the settings of its groups.
SETTINGS = ("optim_bits", "min_8bit_size", "max_unorm", "skip_zeros")


def checked_defaults(lr: Any, betas: Any, eps: float, weight_decay: float) -> dict[str, Any]:
    """The settings of a group; betas may be a string such as "(0.9, 0.95)".

    Raises:
        InvalidArgumentError: one of them is out of range.
    """
    if isinstance(betas, str):
        betas = tuple(float(beta) for beta in ast.literal_eval(betas))
    for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
        if not value >= 0:
            raise InvalidArgumentError(f"{name} is {value}", "It must be 0 or more.")
    for beta in betas:
        if not 0 <= beta < 1:
            raise InvalidArgumentError(f"betas are {betas}", "Each must be in [0, 1).")
    return {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}


def settings(optim_bits: int, min_8bit_size: int, max_unorm: float, skip_zeros: bool) -> MockArgs:
    """The settings that a group does not have.

    Raises:
        InvalidArgumentError: optim_bits is neither 8 nor 32.
    """
    check_bits(optim_bits)
    return MockArgs(dict(zip(SETTINGS, (optim_bits, min_8bit_size, max_unorm, skip_zeros))))


def check_bits(optim_bits: int) -> int:
    """``optim_bits``; raises InvalidArgumentError unless it is 8 or 32."""
    if optim_bits not in (8, 32):
        raise InvalidArgumentError(
            f"optim_bits is {optim_bits!r}", "States are kept in 8 or in 32 bits."
        )
    return optim_bits


def warmed(share: float, beta1: float, beta3: float) -> float:
    """beta3 on its way up from beta1, ``share`` of the way: linear in the half-life (AdEMAMix,
    Pagliardini et al. 2024, section 3)."""
    log1, log3 = math.log(beta1), math.log(beta3)
    return min(math.exp(log1 * log3 / ((1 - share) * log3 + share * log1)), beta3)
