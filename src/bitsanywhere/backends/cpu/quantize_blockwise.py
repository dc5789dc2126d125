"""quantize_blockwise on CPUs; the device code is in `quantize_blockwise_kernel.py`."""

from __future__ import annotations

from functools import lru_cache

import torch

from bitsanywhere.backends.cpu.common import NAMES, launch_blocks, log2, unserved
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.memory import fresh
from bitsanywhere.formats import grid_codes, zero_code
from bitsanywhere.ops.registry import Kernel


def run(A: torch.Tensor, code: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops.quantize_blockwise`."""
    A, n = A.contiguous(), A.numel()
    out = fresh(A.shape, torch.uint8)
    absmax = fresh((-(-n // blocksize),), torch.float32)
    table = _table(code.detach().numpy().tobytes())
    launch_blocks(
        kernel("quantize_blockwise", dtype=NAMES[A.dtype]), n, blocksize,
        A.data_ptr(), n, out.data_ptr(), absmax.data_ptr(), log2(blocksize), table.data_ptr(),
    )  # fmt: skip
    return out, absmax


@lru_cache(maxsize=32)
def _table(raw: bytes) -> torch.Tensor:
    """The codes of all grid points, then that of zero, for the codebook whose bytes are `raw`."""
    code = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    return torch.cat((grid_codes(code), zero_code(code).view(1)))


KERNEL = Kernel(run=run, why_not=lambda A, *rest: unserved(A.dtype))
