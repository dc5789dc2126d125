"""dequantize_blockwise on CPUs; the device code is in `dequantize_blockwise_kernel.py`."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.common import NAMES, launch_blocks, log2, unserved
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.memory import empty
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `ops.dequantize_blockwise`."""
    result = empty(A.shape, dtype) if out is None else out
    A, absmax, code, n = A.contiguous(), absmax.contiguous(), code.contiguous(), A.numel()
    launch_blocks(
        kernel("dequantize_blockwise", dtype=NAMES[dtype]), n, blocksize,
        A.data_ptr(), absmax.data_ptr(), code.data_ptr(), result.data_ptr(), n, log2(blocksize),
    )  # fmt: skip
    return result


KERNEL = Kernel(run=run, why_not=lambda *args: unserved(args[4]))
