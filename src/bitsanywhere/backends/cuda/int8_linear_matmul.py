"""int8_linear_matmul on CUDA: the int32 sums of an int8 product."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cuda.int8_gemm import Codes, multiply
from bitsanywhere.ops.registry import Kernel


def run(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A @ B.T in int32, shape (..., N); `out`, if given, is contiguous, of that shape and dtype."""
    A, B = A.contiguous(), B.contiguous()
    shape = (*A.shape[:-1], B.shape[0])
    if out is not None and out.data_ptr() % 16:
        return out.copy_(run(A, B))
    result = torch.empty(shape, dtype=torch.int32, device=A.device) if out is None else out
    if result.numel():
        multiply(codes_of(A), B, result)
    return result


def codes_of(A: torch.Tensor) -> Codes:
    """A contiguous int8 tensor as an operand."""
    k = A.shape[-1]
    return Codes(A.data_ptr(), k, lambda: A.view(-1, k))


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
