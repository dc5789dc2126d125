"""int8_mm_dequant: scales the int32 product of two row-wise quantized matrices.

    out = A * (row_stats[row] * col_stats[column]) * (1 / 127^2) + bias[column]

in float32 and in this order, rounded once to the result's dtype (LLM.int8(), equation 5).
"""

from __future__ import annotations

import torch

from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.int8_vectorwise_quant import row_count

SCHEMA = (
    "(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, Tensor? bias=None)"
    " -> Tensor"
)
INVERSE_SQUARE = 1 / 127**2
DEFAULT_DTYPE = torch.float16


def check(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Allowed: int32 A of shape (..., N), float32 statistics of its rows and columns."""
    checks.check_dtype("int8_mm_dequant", "A", A, torch.int32)
    columns = A.shape[-1] if A.dim() else 1
    check_statistics("int8_mm_dequant", row_count(A), columns, row_stats, col_stats, dtype, bias)
    checks.check_same_device(
        "int8_mm_dequant", A, row_stats=row_stats, col_stats=col_stats, bias=bias
    )


def check_statistics(
    op: str,
    rows: int,
    columns: int,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None,
    bias: torch.Tensor | None,
) -> None:
    """Raises unless statistics, bias and result dtype fit a product of rows x columns."""
    checks.check_dtype(op, "row_stats", row_stats, torch.float32)
    checks.check_dtype(op, "col_stats", col_stats, torch.float32)
    checks.check_numel(op, "row_stats", row_stats, rows, "one a row")
    checks.check_numel(op, "col_stats", col_stats, columns, "one a column")
    if dtype is not None:
        checks.check_float(op, "dtype", dtype)
    if bias is not None:
        checks.check_float(op, "bias", bias.dtype)
        checks.check_numel(op, "bias", bias, columns, "one a column")


def fake(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """A tensor of A's shape in ``dtype``, float16 if that is None."""
    return A.new_empty(A.shape, dtype=DEFAULT_DTYPE if dtype is None else dtype)


def int8_mm_dequant_torch(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The op in plain torch."""
    scale = row_stats.reshape(*A.shape[:-1], 1) * col_stats.reshape(-1)
    out = A.float() * scale * INVERSE_SQUARE
    if bias is not None:
        out += bias.reshape(-1)
    return out.to(DEFAULT_DTYPE if dtype is None else dtype)


OP = registry.register(
    "int8_mm_dequant", SCHEMA, check=check, fake=fake, reference=int8_mm_dequant_torch
)
