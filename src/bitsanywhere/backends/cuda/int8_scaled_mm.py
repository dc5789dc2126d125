"""int8_scaled_mm on CUDA: product, scales and bias in one."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cuda.int8_gemm import multiply
from bitsanywhere.backends.cuda.int8_linear_matmul import codes_of
from bitsanywhere.backends.cuda.int8_mm_dequant import dense_bias, scales_of
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
    """The product in `dtype`, float16 if that is None, shape (..., N)."""
    A, B = A.contiguous(), B.contiguous()
    dtype = DEFAULT_DTYPE if dtype is None else dtype
    result = torch.empty((*A.shape[:-1], B.shape[0]), dtype=dtype, device=A.device)
    if result.numel():
        row_stats, col_stats = row_stats.contiguous(), col_stats.contiguous()
        bias = dense_bias(bias, dtype)
        multiply(codes_of(A), B, result, scales_of(row_stats, col_stats, bias))
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
