"""int8_mm_dequant on CUDA: launch of int8_dequant.cuh on given sums."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cuda.int8_gemm import Scales, dequantize
from bitsanywhere.ops.int8_mm_dequant import DEFAULT_DTYPE
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The scaled sums in `dtype`, float16 if that is None."""
    A = A.contiguous()
    if A.data_ptr() % 16:
        A = A.clone()
    dtype = DEFAULT_DTYPE if dtype is None else dtype
    result = torch.empty(A.shape, dtype=dtype, device=A.device)
    if result.numel():
        row_stats, col_stats = row_stats.contiguous(), col_stats.contiguous()
        bias = dense_bias(bias, dtype)
        dequantize(A, result, scales_of(row_stats, col_stats, bias))
    return result


def dense_bias(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The bias, contiguous and in the dtype of the result."""
    return None if bias is None else bias.to(dtype).contiguous()


def scales_of(
    row_stats: torch.Tensor, col_stats: torch.Tensor, bias: torch.Tensor | None
) -> Scales:
    """Addresses of contiguous tensors, which the caller keeps alive until after the launch."""
    return Scales(
        row_stats.data_ptr(), col_stats.data_ptr(), 0 if bias is None else bias.data_ptr()
    )


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
