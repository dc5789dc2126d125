"""Linear 8-bit quantization: equally spaced values."""

from __future__ import annotations

import torch


def create_linear_map(
    signed: bool = True, total_bits: int = 8, add_zero: bool = True
) -> torch.Tensor:
    """Equally spaced values over [-1, 1] (signed) or [0, 1], zeros in the middle up to 256.

    Args:
        signed: whether negative values are included.
        total_bits: bits of a code; narrower maps are filled up with zeros.
        add_zero: space one value fewer, so that a signed map holds zero (always so below 8 bits).

    Returns:
        float32 tensor of shape (256,).
    """
    symmetric = signed and (add_zero or total_bits < 8)
    count = 2**total_bits - int(symmetric)
    values = torch.linspace(-1.0 if signed else 0.0, 1.0, count, dtype=torch.float32, device="cpu")
    middle = values.numel() // 2
    return torch.cat([values[:middle], values.new_zeros(256 - count), values[middle:]])
