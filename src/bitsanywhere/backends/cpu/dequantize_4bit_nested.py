"""dequantize_4bit_nested on CPUs: the kernels of dequantize_blockwise and dequantize_4bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cpu import dequantize_4bit, dequantize_blockwise
from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor,
    absmax_code: torch.Tensor,
    absmax_offset: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """See `ops.dequantize_4bit_nested`."""
    scale = dequantize_blockwise.run(
        absmax_8bit.view(-1), absmax, absmax_code, NESTED_BLOCKSIZE, torch.float32
    )
    scale += absmax_offset.detach()
    return dequantize_4bit.run(A, scale, blocksize, quant_type, shape, dtype)


KERNEL = Kernel(run=run, why_not=lambda *args: unserved(args[8]))
