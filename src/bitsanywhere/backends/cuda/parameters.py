"""What the kernels' launchers share: dtype numbers, formats as macros, grids."""

from __future__ import annotations

from functools import cache

import torch

from bitsanywhere.backends.cuda.jit.driver import driver
from bitsanywhere.formats import FORMATS4, cached_tensor, codebook4

try:
    # What torch's own compiled code calls, in two thirds of the time of `new_empty`.
    from torch._C import _cuda_getDevice as _current_device
    from torch._C._dynamo.guards import _empty_strided_cuda as _empty_strided
except ImportError:
    # A build of torch without CUDA, or a version that has them no more.
    _current_device = None

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
def codec4_macros() -> Defines:
    """What codec4.cuh wants to know of `FORMATS4`, in their order: THRESHOLDS, ORDERS."""
    formats = [codebook4(quant_type) for quant_type in FORMATS4]
    thresholds = ",".join(f"{{{_floats(each.thresholds)}}}" for each in formats)
    orders = (sum(code << 4 * i for i, code in enumerate(each.order)) for each in formats)
    return ("THRESHOLDS", thresholds), ("ORDERS", ",".join(f"{order:#x}ull" for order in orders))


def new_tensor(
    like: torch.Tensor,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    index: int,
) -> torch.Tensor:
    """An uninitialised tensor on a device.

    Args:
        like: a tensor of that dtype on that device.
        size, strides: of the tensor, contiguous.
        index: of the device.
    """
    if _current_device is not None and _current_device() == index:
        return _empty_strided(size, strides, dtype)
    return like.new_empty(size)


def tile_size(dtype: torch.dtype) -> int:
    """TILE of blocks.cuh: elements that a warp takes at once, and the kernels' longest block."""
    return 512 if dtype == torch.float32 else 1024


def grid_size(work: int, most: int) -> int:
    """Blocks for `work` equal pieces when `most` blocks fit on the chip at once."""
    return max(1, min(work, most))


def aligned(*pointers: int) -> bool:
    """Whether all addresses are multiples of 16."""
    joined = 0
    for pointer in pointers:
        joined |= pointer
    return joined % 16 == 0


def aligned_copy(x: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it that is contiguous and lies at a multiple of 16 bytes."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def _floats(values: tuple[float, ...]) -> str:
    return ",".join(f"{value.hex()}f" for value in values)
