"""What the kernels' launchers share: dtype numbers, formats as macros, grids."""

from __future__ import annotations

from functools import cache

import torch

from bitsanywhere.backends.cuda.jit.driver import driver
from bitsanywhere.formats import cached_tensor, codebook4

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
Defines = tuple[tuple[str, "str | int"], ...]


@cache
def codebook(quant_type: str, device: torch.device) -> torch.Tensor:
    """The 16 float32 values of a 4-bit format by code; shared, never written to."""
    if not torch.cuda.is_current_stream_capturing():
        return cached_tensor(codebook4(quant_type), device)
    # Not part of the capture, whose replays would be needed to fill it.
    with driver().relaxed_capture(), torch.cuda.stream(_free_stream(device)):
        return cached_tensor(codebook4(quant_type), device)


def _free_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that is not being captured; torch hands out a few by turns."""
    while True:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            if not torch.cuda.is_current_stream_capturing():
                return stream


@cache
def codec4_macros(quant_type: str) -> Defines:
    """What codec4.cuh wants to know of a format: THRESHOLDS, ORDER."""
    format4 = codebook4(quant_type)
    order = sum(code << 4 * i for i, code in enumerate(format4.order))
    return ("THRESHOLDS", _floats(format4.thresholds)), ("ORDER", f"{order:#x}ull")


def grid_size(work: int, most: int) -> int:
    """Blocks for `work` equal pieces when `most` blocks fit on the chip at once."""
    return max(1, min(work, most))


def aligned(*pointers: int) -> bool:
    """Whether all addresses are multiples of 16."""
    joined = 0
    for pointer in pointers:
        joined |= pointer
    return joined % 16 == 0


def _floats(values: tuple[float, ...]) -> str:
    return ",".join(f"{value.hex()}f" for value in values)
