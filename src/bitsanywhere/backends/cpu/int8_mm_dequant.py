"""int8_mm_dequant on CPUs; the device code is in `int8_mm_dequant_kernel.py`."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.int8_product import dequantize
from bitsanywhere.ops.int8_mm_dequant import DEFAULT_DTYPE
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `ops.int8_mm_dequant`."""
    return dequantize(A, row_stats, col_stats, bias, dtype or DEFAULT_DTYPE)


def why_not(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> str | None:
    """float16 needs instructions for it."""
    return unserved(dtype or DEFAULT_DTYPE)


KERNEL = Kernel(run=run, why_not=why_not)
