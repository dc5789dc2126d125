"""quantize_4bit on CPUs; the device code is in `quantize_4bit_kernel.py`."""

from __future__ import annotations

from functools import lru_cache

import torch

from bitsanywhere.backends.cpu.common import NAMES, launch_blocks, log2, unserved
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.memory import fresh
from bitsanywhere.formats import codebook4
from bitsanywhere.ops.registry import Kernel


def run(
    A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops.quantize_4bit`; reads A where it lies, without a float32 copy."""
    A, n = A.contiguous(), A.numel()
    packed = fresh(((n + 1) // 2,), torch.uint8)
    absmax = fresh((-(-n // blocksize),), torch.float32)
    thresholds, order = _tables(quant_type)
    launch_blocks(
        kernel("quantize_4bit", dtype=NAMES[A.dtype]), n, blocksize,
        A.data_ptr(), n, packed.data_ptr(), absmax.data_ptr(), log2(blocksize),
        thresholds.data_ptr(), order.data_ptr(),
    )  # fmt: skip
    return packed.view(quant_storage).unsqueeze(1), absmax


@lru_cache
def _tables(quant_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    format4 = codebook4(quant_type)
    thresholds = torch.tensor([*format4.thresholds, 0.0], dtype=torch.float32, device="cpu")
    return thresholds, torch.tensor(format4.order, dtype=torch.int32, device="cpu")


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
