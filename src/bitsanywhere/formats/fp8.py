"""8-bit floating point maps (FP8: E5M2, E4M3 and relatives), scaled to [-1, 1]."""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.formats.base import codebook8


def create_fp8_map(
    signed: bool = True, exponent_bits: int = 5, precision_bits: int = 2, total_bits: int = 8
) -> torch.Tensor:
    """Every value of a small float, without NaN or Inf, over its largest.

    A code with exponent ``e`` and mantissa ``m`` stands for ``(2**precision_bits + m) * 2**e``,
    and with ``e = 0`` for ``m / 2``: a quarter of IEEE 754's subnormals, as bitsandbytes has it.

    Args:
        signed: whether one bit is the sign.
        exponent_bits: width of the exponent ``e``.
        precision_bits: width of the mantissa ``m``.
        total_bits: sign, exponent and mantissa together.

    Returns:
        float32 tensor of shape (256,), ascending.

    Raises:
        InvalidArgumentError: if the widths do not add up to ``total_bits``.
    """
    if exponent_bits + precision_bits + int(signed) != total_bits:
        raise InvalidArgumentError(
            f"create_fp8_map: {int(signed)} sign + {exponent_bits} exponent + {precision_bits} "
            f"mantissa bits are not {total_bits} bits",
            mend="Choose exponent_bits and precision_bits that add up to total_bits - signed.",
        )
    steps = 2**precision_bits
    magnitudes = [
        (steps + m) * 2.0**e if e else m / 2 for e in range(2**exponent_bits) for m in range(steps)
    ]
    signs = (1, -1) if signed else (1,)
    largest = max(magnitudes)
    return codebook8([sign * magnitude / largest for magnitude in magnitudes for sign in signs])
