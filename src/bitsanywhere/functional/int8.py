"""Row-wise 8-bit quantization and products (LLM.int8()) under bitsandbytes' names."""

from __future__ import annotations

from typing import Optional

import torch

from bitsanywhere import ops
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.functional.blockwise import into
from bitsanywhere.ops.int8_mm_dequant import DEFAULT_DTYPE


def int8_vectorwise_quant(A: torch.Tensor, threshold=0.0):
    """Quantizes each row to int8 by its largest magnitude (LLM.int8(), Dettmers et al. 2022).

    Args:
        A: float32, float16 or bfloat16 of shape (..., K).
        threshold: magnitudes from here on are outliers; 0 means there are none.

    Returns:
        int8 codes of A's shape, zero in columns with an outlier; the largest magnitude of each row
        that is no outlier, float32 (rows,); int64 indices of columns with an outlier, or None if
        the threshold is 0.

    Raises:
        DtypeError, InvalidArgumentError: naming what was given and what is allowed.
    """
    return ops.int8_vectorwise_quant(A, threshold)


def int8_vectorwise_dequant(A: torch.Tensor, stats: torch.Tensor):
    """Restores what `int8_vectorwise_quant` made: A * stats / 127.

    Args:
        A: int8 of shape (..., K).
        stats: largest magnitude of each row, (rows,).

    Returns:
        A tensor of A's shape and the dtype of ``stats``.
    """
    return ops.int8_vectorwise_dequant(A, stats)


def int8_linear_matmul(
    A: torch.Tensor, B: torch.Tensor, out: Optional[torch.Tensor] = None, dtype=torch.int32
):
    """A @ B.T of int8 matrices, exact.

    Args:
        A: int8 of shape (..., K).
        B: int8 of shape (N, K).
        out: int32 of shape (..., N), receives the result.
        dtype: kept for its place in the signature; must be int32.
    """
    if dtype != torch.int32:
        raise InvalidArgumentError(
            f"int8_linear_matmul: dtype is {dtype}",
            "The product is torch.int32.",
            "int8_mm_dequant makes floats of it.",
        )
    return into(ops.int8_linear_matmul(A, B), out, "out")


def int8_mm_dequant(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
):
    """Scales what `int8_linear_matmul` made: A * row_stats * col_stats / 127^2 + bias.

    Args:
        A: int32 of shape (..., N).
        row_stats, col_stats: float32 statistics of the rows of the two factors, (rows,) and (N,).
        out: receives the result; its dtype stands for float16.
        bias: float of shape (N,).

    Returns:
        A tensor of A's shape, float16 unless ``out`` is something else.
    """
    dtype = DEFAULT_DTYPE if out is None else out.dtype
    return into(ops.int8_mm_dequant(A, row_stats, col_stats, dtype, bias), out, "out")


def int8_double_quant(
    A: torch.Tensor,
    col_stats: Optional[torch.Tensor] = None,
    row_stats: Optional[torch.Tensor] = None,
    out_col: Optional[torch.Tensor] = None,
    out_row: Optional[torch.Tensor] = None,
    threshold=0.0,
):
    """Quantizes by rows and by columns at once.

    Args:
        A: float32, float16 or bfloat16 of shape (..., K).
        col_stats, row_stats, out_col, out_row: receive parts of the result.
        threshold: as in `int8_vectorwise_quant`.

    Returns:
        Codes by row, codes by column (int8, A's shape), statistics of rows (rows,) and of columns
        (K,) in float32, and the outlier columns as `int8_vectorwise_quant` has them.
    """
    by_row, by_col, of_rows, of_cols, outliers = ops.int8_double_quant(A, threshold)
    return (
        into(by_row, out_row, "out_row"),
        into(by_col, out_col, "out_col"),
        into(of_rows, row_stats, "row_stats"),
        into(of_cols, col_stats, "col_stats"),
        outliers,
    )
