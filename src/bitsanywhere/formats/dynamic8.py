"""Dynamic tree quantization (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
Quantization", section 2.1 and appendix F): a sign, a run of zeros as a decimal exponent, an
indicator bit, and the rest a linear fraction.
"""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.formats.base import codebook8


def create_dynamic_map(
    signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8
) -> torch.Tensor:
    """The dynamic map, ascending, zeros filling up to 256 entries.

    For each exponent ``e`` from 0 to ``max_exponent_bits - 1`` the fraction splits [0.1, 1] into
    equal intervals, and their midpoints times ``10 ** (e - max_exponent_bits + 1)`` are values;
    the number of intervals doubles with ``e``. Zero and one complete the map.

    Args:
        signed: whether the values come with both signs (float32 in [-0.993, 1] or [0, 1]).
        max_exponent_bits: the longest run of exponent bits.
        total_bits: bits of a code, sign included.

    Returns:
        float32 tensor of shape (256,).

    Raises:
        InvalidArgumentError: if these bits do not make a map of ``2 ** total_bits`` values.
    """
    fraction_bits = total_bits - 1 - max_exponent_bits
    positive: list[float] = []
    for exponent in range(max_exponent_bits):
        intervals = 2 ** (exponent + fraction_bits + (0 if signed else 1))
        positive += _midpoints(intervals, 10.0 ** (exponent - max_exponent_bits + 1))
    if fraction_bits > 0:
        positive += _midpoints(2**fraction_bits - 1, 1.0)
    values = [sign * value for value in positive for sign in ((1, -1) if signed else (1,))]
    if len(values) + 2 != 2**total_bits:
        raise InvalidArgumentError(
            f"create_dynamic_map: signed={signed}, max_exponent_bits={max_exponent_bits} and "
            f"total_bits={total_bits} give {len(values) + 2} values, not {2**total_bits}",
            mend="An unsigned map needs max_exponent_bits = total_bits - 1, a signed one at most.",
        )
    return codebook8([*values, 0.0, 1.0])


def _midpoints(intervals: int, scale: float) -> list[float]:
    bounds = torch.linspace(0.1, 1.0, intervals + 1, dtype=torch.float32, device="cpu")
    return (scale * (bounds[:-1] + bounds[1:]) / 2).tolist()
