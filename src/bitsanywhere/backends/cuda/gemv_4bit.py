"""gemv_4bit on CUDA: the kernels of gemm_4bit, with the codebook from a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cuda import gemm_4bit
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A @ W.T, of A's dtype and shape (..., N); `out`, if given, is contiguous and fits."""
    B, code = B.contiguous(), code.contiguous()
    product = gemm_4bit.Product(
        A.get_device(), B, shapeB, absmax.contiguous(), None, blocksize, code, overlap=False
    )
    result = product(A, B, None, out)
    assert result is not None, "arguments that were checked fit"
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
