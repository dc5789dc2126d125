"""int8_scaled_mm: int8_linear_matmul, then int8_mm_dequant, as one op.

out = (A @ B.T) * (row_stats[row] * col_stats[column]) * (1 / 127^2) + bias[column]
"""

from __future__ import annotations

import torch

from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.int8_linear_matmul import OP as int8_linear_matmul
from bitsanywhere.ops.int8_linear_matmul import check_codes
from bitsanywhere.ops.int8_mm_dequant import DEFAULT_DTYPE, check_statistics
from bitsanywhere.ops.int8_mm_dequant import OP as int8_mm_dequant
from bitsanywhere.ops.int8_vectorwise_quant import row_count

SCHEMA = (
    "(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, Tensor? bias=None, "
    "ScalarType? dtype=None) -> Tensor"
)


def check(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Allowed: int8 A (..., K) and B (N, K), float32 statistics of the rows of each."""
    check_codes("int8_scaled_mm", "A", A, "B", B)
    check_statistics("int8_scaled_mm", row_count(A), B.shape[0], row_stats, col_stats, dtype, bias)
    checks.check_same_device(
        "int8_scaled_mm", A, row_stats=row_stats, col_stats=col_stats, bias=bias
    )


def fake(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A tensor of shape (..., N) in ``dtype``, float16 if that is None."""
    dtype = DEFAULT_DTYPE if dtype is None else dtype
    return A.new_empty((*A.shape[:-1], B.shape[0]), dtype=dtype)


def int8_scaled_mm_torch(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The two ops one after the other, each by the best there is for the device."""
    product = int8_linear_matmul.trusted(A, B)
    return int8_mm_dequant.trusted(product, row_stats, col_stats, dtype, bias)


OP = registry.register(
    "int8_scaled_mm", SCHEMA, check=check, fake=fake, reference=int8_scaled_mm_torch
)
