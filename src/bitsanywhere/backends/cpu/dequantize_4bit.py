"""dequantize_4bit on CPUs; the device code is in `dequantize_4bit_kernel.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cpu.common import NAMES, launch_blocks, log2, unserved
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.memory import empty
from bitsanywhere.formats import cached_tensor, codebook4
from bitsanywhere.ops.registry import Kernel

_CPU = torch.device("cpu")


def run(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `ops.dequantize_4bit`."""
    result = empty(tuple(shape), dtype) if out is None else out
    A, absmax = A.contiguous(), absmax.contiguous()
    code = cached_tensor(codebook4(quant_type), _CPU)
    unpack(A.data_ptr(), absmax.data_ptr(), blocksize, code, result)
    return result


def unpack(packed: int, absmax: int, blocksize: int, code: torch.Tensor, out: torch.Tensor) -> None:
    """Dequantizes into the contiguous `out`.

    Args:
        packed: address of the packed codes, the first at a block's start.
        absmax: address of the float32 scales.
        code: float32 codebook of 16 entries.
    """
    n = out.numel()
    launch_blocks(
        kernel("dequantize_4bit", dtype=NAMES[out.dtype]), n, blocksize,
        packed, absmax, code.data_ptr(), out.data_ptr(), n, log2(blocksize),
    )  # fmt: skip


KERNEL = Kernel(run=run, why_not=lambda *args: unserved(args[5]))
