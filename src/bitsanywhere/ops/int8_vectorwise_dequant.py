"""int8_vectorwise_dequant: the inverse of int8_vectorwise_quant without outliers.

x = code * absmax[row] * (1 / 127)                (in this order, in the dtype of absmax)
"""

from __future__ import annotations

import torch

from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.int8_vectorwise_quant import row_count

SCHEMA = "(Tensor A, Tensor stats) -> Tensor"
INVERSE = 1 / 127


def check(A: torch.Tensor, stats: torch.Tensor) -> None:
    """Allowed: int8 A of shape (..., K), float statistics, one a row."""
    checks.check_dtype("int8_vectorwise_dequant", "A", A, torch.int8)
    checks.check_float("int8_vectorwise_dequant", "stats", stats.dtype)
    checks.check_numel("int8_vectorwise_dequant", "stats", stats, row_count(A), "one a row")
    checks.check_same_device("int8_vectorwise_dequant", A, stats=stats)


def fake(A: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """A tensor of A's shape and the dtype of the statistics."""
    return A.new_empty(A.shape, dtype=stats.dtype)


def int8_vectorwise_dequant_torch(A: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """The op in plain torch."""
    return A * stats.reshape(*A.shape[:-1], 1) * INVERSE


OP = registry.register(
    "int8_vectorwise_dequant",
    SCHEMA,
    check=check,
    fake=fake,
    reference=int8_vectorwise_dequant_torch,
)
