"""int8_vectorwise_quant: one scale a row, outlier columns apart (LLM.int8(), Dettmers et al. 2022,
sections 2.1 and 3.2).

For a row ``x`` of the input, seen as a matrix of its last dimension, and ``t`` = the threshold
rounded to the input's dtype:

    outlier     = |x| >= t                 (none if the threshold is 0; NaN is no outlier)
    absmax      = max of |x| over what is no outlier                 (float32, NaN spreads)
    code        = clamp(round_half_even(x * (127 * (1 / absmax))), -127, 127)       (0 for NaN)
    code        = 0 in every column that has an outlier in any row

in float32, each step rounded. Rows of zeros get absmax 0 and code 0. Outlier columns are returned
as ascending int64 indices: their products are to be computed in floating point.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.ops import checks, registry

SCHEMA = "(Tensor A, float threshold=0.) -> (Tensor, Tensor, Tensor?)"
LARGEST = 127.0

Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def check(A: torch.Tensor, threshold: float = 0.0) -> None:
    """Allowed: float A of shape (..., K)."""
    check_rows("int8_vectorwise_quant", A)


def check_rows(op: str, A: torch.Tensor) -> None:
    """Raises unless A is float and has rows."""
    checks.check_float(op, "A", A.dtype)
    if A.dim() == 0:
        raise InvalidArgumentError(
            f"{op}: A has shape {tuple(A.shape)}", "It must have rows: (..., K).", "Use A.view(1)."
        )


def fake(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """int8 codes of A's shape, float32 absmax (rows,), int64 outlier columns or None."""
    stats = A.new_empty((row_count(A),), dtype=torch.float32)
    codes = A.new_empty(A.shape, dtype=torch.int8)
    return codes, stats, fake_columns(A) if threshold > 0 else None


def fake_columns(A: torch.Tensor) -> torch.Tensor:
    """Indices whose number only the data tell: unknown to a tracer, and to a tensor on meta."""
    try:
        count = torch.library.get_ctx().new_dynamic_size()
    except (AttributeError, RuntimeError) as error:
        raise InvalidArgumentError(
            "A is on meta and the threshold above 0",
            "How many outlier columns there are depends on the data.",
            "Use a threshold of 0 there, or int8_linear, whose result has a known shape.",
        ) from error
    return A.new_empty((count,), dtype=torch.int64)


def row_count(A: torch.Tensor) -> int:
    """Number of rows of a tensor of shape (..., K)."""
    rows = 1
    for size in A.shape[:-1]:
        rows *= size
    return rows


@lru_cache(maxsize=64)
def rounded_threshold(threshold: float, dtype: torch.dtype) -> float:
    """The threshold as it is compared: rounded to the dtype of the activations."""
    return torch.tensor(threshold, dtype=dtype).item()


def int8_vectorwise_quant_torch(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """The op in plain torch."""
    x = A.reshape(row_count(A), A.shape[-1])
    columns = None
    if threshold > 0:
        outliers = x.abs() >= rounded_threshold(threshold, A.dtype)
        columns = outliers.any(dim=0).nonzero().view(-1)
        stats = absmax_torch(x.masked_fill(outliers, 0.0), 1)
    else:
        stats = absmax_torch(x, 1)
    codes = codes_torch(x, stats.unsqueeze(1))
    if columns is not None:
        codes[:, columns] = 0
    return codes.view(A.shape), stats, columns


def absmax_torch(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Largest magnitude along ``dim`` in float32; 0 where there are no elements."""
    if x.shape[dim] == 0:
        return x.new_zeros((x.shape[1 - dim],), dtype=torch.float32)
    return x.abs().amax(dim=dim).float()


def codes_torch(x: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """int8 codes of ``x`` for statistics that broadcast against it."""
    scaled = x.float() * (LARGEST * stats.reciprocal())
    return scaled.round().nan_to_num(0.0).clamp(-LARGEST, LARGEST).to(torch.int8)


OP = registry.register(
    "int8_vectorwise_quant", SCHEMA, check=check, fake=fake, reference=int8_vectorwise_quant_torch
)
