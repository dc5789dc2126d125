"""int8_mixed_scaled_mm on CUDA: int8_scaled_mm and the outlier columns in one."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cuda.int8_gemm import Outliers, multiply
from bitsanywhere.backends.cuda.int8_linear_matmul import codes_of
from bitsanywhere.backends.cuda.int8_mm_dequant import dense_bias, scales_of
from bitsanywhere.ops.int8_vectorwise_quant import row_count
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    CA: torch.Tensor,
    CB: torch.Tensor,
    SCA: torch.Tensor,
    SCB: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in A's dtype, shape (..., N), and A's outlier columns, (0,) without any."""
    A, CA, CB = A.contiguous(), CA.contiguous(), CB.contiguous()
    result = torch.empty((*A.shape[:-1], CB.shape[0]), dtype=A.dtype, device=A.device)
    outliers, outlier_values = Outliers(), A.new_empty((0,))
    columns = None
    if outlier_cols is not None:
        outlier_values = A.view(row_count(A), A.shape[-1])[:, outlier_cols]
        # Negative indices count from the end.
        columns = (outlier_cols % max(1, A.shape[-1])).int()
        outliers = Outliers(A.data_ptr(), 0, 0, columns.data_ptr(), columns.numel(), True)
    if result.numel():
        SCA, SCB = SCA.contiguous(), SCB.contiguous()
        bias = dense_bias(bias, A.dtype)
        multiply(codes_of(CA), CB, result, scales_of(SCA, SCB, bias), outliers)
    return result, outlier_values


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
