"""gemv_4bit on CPUs; see `matmul.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.backends.cpu.matmul import Weight, linear
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
    """See `ops.gemv_4bit`."""
    n, k = shapeB
    weight = Weight(B.contiguous(), n, k, absmax.contiguous(), blocksize, code.contiguous())
    return linear(A.contiguous(), weight, None, out)


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
