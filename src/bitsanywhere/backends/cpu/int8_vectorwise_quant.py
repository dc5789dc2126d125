"""int8_vectorwise_quant on CPUs; the device code is in `int8_vectorwise_quant_kernel.py`."""

from __future__ import annotations

import struct

import torch

from bitsanywhere.backends.cpu.common import NAMES, unserved
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.memory import fresh
from bitsanywhere.backends.cpu.parallel import launch
from bitsanywhere.ops.int8_vectorwise_quant import Quantized, rounded_threshold, row_count
from bitsanywhere.ops.registry import Kernel

# Elements a task: a quarter of a second-level cache.
_TASK = 1 << 16


def run(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """See `ops.int8_vectorwise_quant`."""
    A, m, k = A.contiguous(), row_count(A), A.shape[-1]
    codes, stats = fresh(A.shape, torch.int8), fresh((m,), torch.float32)
    apart, bits, address = threshold > 0, 0, 0
    flags = None
    if apart:
        flags = torch.zeros(k, dtype=torch.uint8, device="cpu")
        address = flags.data_ptr()
        bits = int.from_bytes(struct.pack("=f", rounded_threshold(threshold, A.dtype)), "little")
    batch = rows_a_task(k)
    launch(
        kernel("int8_vectorwise_quant", dtype=NAMES[A.dtype], apart=apart), -(-m // batch),
        A.data_ptr(), m, k, codes.data_ptr(), stats.data_ptr(), bits, address, batch,
    )  # fmt: skip
    if flags is None:
        return codes, stats, None
    columns = flags.nonzero().view(-1)
    if columns.numel():
        codes.view(m, k).index_fill_(1, columns, 0)
    return codes, stats, columns


def rows_a_task(k: int) -> int:
    """How many rows of ``k`` elements a thread takes at a time."""
    return max(_TASK // max(k, 1), 1)


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
