"""What the host side of several CPU kernels shares."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch

from bitsanywhere.backends.cpu.compiler import Function
from bitsanywhere.backends.cpu.machine import host
from bitsanywhere.backends.cpu.parallel import launch, threads

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Large tasks keep two threads from faulting in the same huge page, which would clear it twice.
_SMALLEST_TASK, _LARGEST_TASK = 1 << 15, 1 << 20


def unserved(dtype: torch.dtype) -> str | None:
    """Why no kernel takes `dtype` on this processor, or None if one does."""
    if dtype == torch.float16 and not host().half:
        return "this processor has no instructions for float16"
    return None


def launch_blocks(function: Function, count: int, blocksize: int, *words: int) -> None:
    """Launches a kernel over the blocks of `count` elements; its last word is blocks a task."""
    share = min(max(count // (8 * threads()), _SMALLEST_TASK), _LARGEST_TASK)
    batch = max(1, share // blocksize)
    launch(function, -(-count // (batch * blocksize)), *words, batch)


def log2(blocksize: int) -> int:
    """The exponent of a power of two."""
    return blocksize.bit_length() - 1


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """torch.empty on the CPU; Linux is advised to back a large result with huge pages.

    Fresh memory comes in page by page as it is first written, which for 4 KiB pages takes several
    times as long as dequantizing into it.
    """
    out = torch.empty(shape, dtype=dtype, device="cpu")
    size = out.numel() * out.element_size()
    if size >= _HUGE and _LIBC is not None:
        start = -(-out.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        length = (out.data_ptr() + size - start) // _HUGE_PAGE * _HUGE_PAGE
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _ADVICE)
    return out


_HUGE_PAGE = 1 << 21
_HUGE = 4 * _HUGE_PAGE
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_LIBC = None if _ADVICE is None else ctypes.CDLL(None)
