"""gemm_4bit on CPUs; see `matmul.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.matmul import Weight, linear
from bitsanywhere.formats import cached_tensor, codebook4
from bitsanywhere.ops.registry import Kernel

_CPU = torch.device("cpu")


def run(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `ops.gemm_4bit`."""
    n, k = shapeB
    code = cached_tensor(codebook4(quant_type), _CPU)
    weight = Weight(
        B.contiguous(), n, k, absmax.contiguous(), blocksize, code, contiguous(absmax_8bit),
        contiguous(absmax_code), absmax_offset,
    )  # fmt: skip
    return linear(A.contiguous(), weight, contiguous(bias))


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor in row-major order, copied only if it is not."""
    return None if tensor is None else tensor.contiguous()


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
