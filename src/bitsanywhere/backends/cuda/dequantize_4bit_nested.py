"""dequantize_4bit_nested on CUDA: the kernels of dequantize_4bit that take nested scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cuda import dequantize_4bit
from bitsanywhere.backends.cuda.parameters import codebook
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
    """The dequantized tensor."""
    code, nested = codebook(quant_type, A.device), (absmax_8bit, absmax_code, absmax_offset)
    return dequantize_4bit.decode(A, absmax, blocksize, code, shape, dtype, nested=nested)


KERNEL = Kernel(run=run, why_not=dequantize_4bit.why_not)
