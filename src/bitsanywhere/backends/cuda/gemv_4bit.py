"""gemv_4bit on CUDA: the kernels of gemm_4bit, with the codebook from a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def bind(
    device: torch.device,
    B: torch.Tensor,
    shape: Sequence[int],
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
    *nested: torch.Tensor | None,
) -> Callable[..., torch.Tensor | None]:
    """As gemm_4bit's, for as long as the codebook stays where it is."""
    address, given = code.data_ptr(), gemm_4bit.all_or_none(nested)
    # Whatever writes the codebook may be the kernel ahead.
    product = gemm_4bit.Product(
        device.index, B, shape, absmax, given, blocksize, code, overlap=False
    )
    # Python calls a method faster than an object.
    multiply = product.__call__

    def bound(A: torch.Tensor, B: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        return multiply(A, B, bias) if code.data_ptr() == address else None

    return bound


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not, bind=bind)
