"""int8_scaled_mm on CPUs; see `int8_product.py`."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.int8_product import scaled
from bitsanywhere.ops.int8_mm_dequant import DEFAULT_DTYPE
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See `ops.int8_scaled_mm`."""
    return scaled(A, B, row_stats, col_stats, bias, dtype or DEFAULT_DTYPE)


def why_not(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> str | None:
    """float16 needs instructions for it."""
    return unserved(dtype or DEFAULT_DTYPE)


KERNEL = Kernel(run=run, why_not=why_not)
