"""int8_mixed_scaled_mm on CPUs; see `int8_product.py`. Outliers are added in float32."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.int8_product import scaled
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
    """See `ops.int8_mixed_scaled_mm`."""
    if outlier_cols is None:
        return scaled(CA, CB, SCA, SCB, bias, A.dtype), A.new_empty((0,))
    if outlier_cols.numel() == 0:
        return scaled(CA, CB, SCA, SCB, bias, A.dtype), A.new_empty((row_count(A), 0))
    outliers = A.detach().reshape(-1, A.shape[-1]).index_select(1, outlier_cols)
    return scaled(CA, CB, SCA, SCB, bias, A.dtype, outlier_cols, outliers), outliers


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
