"""int8_linear on CPUs: quantization and product by their kernels."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu import int8_mixed_scaled_mm, int8_vectorwise_quant
from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    CB: torch.Tensor,
    SCB: torch.Tensor,
    threshold: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """See `ops.int8_linear`."""
    codes, stats, outliers = int8_vectorwise_quant.run(A, threshold)
    return int8_mixed_scaled_mm.run(A, codes, CB, stats, SCB, outliers, bias)[0]


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
