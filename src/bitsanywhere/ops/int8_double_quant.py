"""int8_double_quant: int8_vectorwise_quant by rows and by columns at once.

Row codes, row statistics and outlier columns are those of int8_vectorwise_quant. For a column:

    absmax = max of |x| over what is no outlier                                  (float32)
    code   = clamp(round_half_even(x * (127 * (1 / absmax))), -127, 127)          (0 for NaN)
    code   = 0 for outliers themselves, not for the rest of their column
"""

from __future__ import annotations

import torch

from bitsanywhere.ops import registry
from bitsanywhere.ops.int8_vectorwise_quant import OP as int8_vectorwise_quant
from bitsanywhere.ops.int8_vectorwise_quant import (
    absmax_torch,
    check_rows,
    codes_torch,
    fake_columns,
    rounded_threshold,
    row_count,
)

SCHEMA = "(Tensor A, float threshold=0.) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)"

Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def check(A: torch.Tensor, threshold: float = 0.0) -> None:
    """Allowed: float A of shape (..., K)."""
    check_rows("int8_double_quant", A)


def fake(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """Codes by row and by column, statistics of rows and columns, outlier columns or None."""
    return (
        A.new_empty(A.shape, dtype=torch.int8),
        A.new_empty(A.shape, dtype=torch.int8),
        A.new_empty((row_count(A),), dtype=torch.float32),
        A.new_empty((A.shape[-1],), dtype=torch.float32),
        fake_columns(A) if threshold > 0 else None,
    )


def int8_double_quant_torch(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """Rows by the best there is for the device, columns in plain torch."""
    by_row, row_stats, columns = int8_vectorwise_quant.trusted(A, threshold)
    x = A.reshape(row_count(A), A.shape[-1])
    if threshold > 0:
        x = x.masked_fill(x.abs() >= rounded_threshold(threshold, A.dtype), 0.0)
    col_stats = absmax_torch(x, 0)
    return by_row, codes_torch(x, col_stats).view(A.shape), row_stats, col_stats, columns


OP = registry.register(
    "int8_double_quant", SCHEMA, check=check, fake=fake, reference=int8_double_quant_torch
)
