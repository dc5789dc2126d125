"""int8_vectorwise_dequant on CPUs; the device code is in `int8_vectorwise_dequant_kernel.py`."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.int8_vectorwise_quant import rows_a_task
from bitsanywhere.backends.cpu.memory import fresh
from bitsanywhere.backends.cpu.parallel import launch
from bitsanywhere.ops.int8_vectorwise_quant import row_count
from bitsanywhere.ops.registry import Kernel


def run(A: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """See `ops.int8_vectorwise_dequant`."""
    A, stats, m, k = A.contiguous(), stats.contiguous(), row_count(A), A.shape[-1]
    out, batch = fresh(A.shape, torch.float32), rows_a_task(k)
    launch(
        kernel("int8_vectorwise_dequant"), -(-m // batch),
        A.data_ptr(), m, k, stats.data_ptr(), out.data_ptr(), batch,
    )  # fmt: skip
    return out


def why_not(A: torch.Tensor, stats: torch.Tensor) -> str | None:
    """Statistics are float32 but in rare programs."""
    return None if stats.dtype == torch.float32 else f"statistics are {stats.dtype}"


KERNEL = Kernel(run=run, why_not=why_not)
