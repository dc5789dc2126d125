"""int8_linear on CUDA: quantizes the activations, then one product that does all the rest.

Nothing waits for the device: the number of outlier columns stays there.
"""

from __future__ import annotations

import torch

from bitsanywhere.backends.cuda.int8_gemm import Codes, Outliers, Scales, multiply
from bitsanywhere.backends.cuda.int8_vectorwise_quant import quantize
from bitsanywhere.backends.cuda.jit import current_stream
from bitsanywhere.backends.cuda.workspace import workspace
from bitsanywhere.ops.registry import Kernel

# Larger scratch memory is not kept for the next call.
_MOST_KEPT_FLOATS = 1 << 24


def run(
    A: torch.Tensor,
    CB: torch.Tensor,
    SCB: torch.Tensor,
    threshold: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The layer's output, of A's dtype and shape (..., N)."""
    n, k = CB.shape
    A, CB, SCB = A.contiguous(), CB.contiguous(), SCB.contiguous()
    result = torch.empty((*A.shape[:-1], n), dtype=A.dtype, device=A.device)
    if result.numel() == 0:
        return result
    m = result.numel() // n
    if bias is not None:
        bias = bias.contiguous()
    stride = -(-k // 16) * 16
    # In floats, and each part at a multiple of four: scales, codes.
    at_codes = -(-m // 4) * 4
    size = at_codes + m * stride // 4
    index = A.get_device()
    kept = workspace(index, current_stream(index), size if size <= _MOST_KEPT_FLOATS else 0)
    scratch = kept.partial
    if size > _MOST_KEPT_FLOATS:
        scratch = torch.empty(size, dtype=torch.float32, device=A.device)
    scales = scratch.data_ptr()
    codes = scales + 4 * at_codes
    outliers, counters = Outliers(), kept.arrivals
    if threshold > 0:
        words = 1 + -(-k // 32)
        if words > counters.numel():
            counters = torch.zeros(words, dtype=torch.int32, device=A.device)
        arrivals = counters.data_ptr()
        outliers = Outliers(A.data_ptr(), mask=arrivals + 4, arrivals=arrivals)
    quantize(A, m, k, codes, stride, scales, outliers.mask, threshold)

    def code_rows() -> torch.Tensor:
        return scratch[at_codes:size].view(torch.int8).view(m, stride)

    multiply(
        Codes(codes, stride, code_rows),
        CB,
        result,
        Scales(scales, SCB.data_ptr(), 0 if bias is None else bias.data_ptr()),
        outliers,
        overlap=True,
    )
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
