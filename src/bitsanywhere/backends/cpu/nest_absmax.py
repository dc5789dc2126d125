"""nest_absmax on CPUs: torch's mean, and the kernel of quantize_blockwise."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu import quantize_blockwise
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.ops.nest_absmax import Nested, mean
from bitsanywhere.ops.registry import Kernel


def run(absmax: torch.Tensor, code: torch.Tensor) -> Nested:
    """See `ops.nest_absmax`."""
    absmax = absmax.detach()
    offset = mean(absmax)
    codes, outer = quantize_blockwise.run(absmax - offset, code, NESTED_BLOCKSIZE)
    return codes, outer, offset


KERNEL = Kernel(run=run, why_not=lambda *args: None)
