"""Memory for dequantized tensors, taken over from earlier results that nothing refers to any more.

Fresh memory is cleared by the system page by page as it is first written, which for a result of
32 MB takes three times as long as dequantizing into it. So the memory of the last results of 1 MiB
and more is kept, up to `KEPT_BYTES`, and used again once its tensor and all views of it are gone.
Where Linux has huge pages, new memory of 8 MiB and more asks for them.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Sequence

import torch

KEPT_BYTES = 128 << 20
_HUGE_PAGE = 1 << 21
_LARGE = 4 * _HUGE_PAGE
_RECYCLED = 1 << 20
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_LIBC = None if _ADVICE is None else ctypes.CDLL(None)
# Users of a storage: what torch's own CUDA graph trees count by.
_use_count = getattr(torch._C, "_storage_Use_Count", None)


class Recycler:
    """Keeps storages and hands out those that only it still refers to.

    Args:
        limit: bytes to keep at most; a larger result is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[torch.UntypedStorage] = []
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """torch.empty on the CPU, in recycled memory where some of exactly that size is free."""
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size < _RECYCLED or size > self._limit or _use_count is None:
            return fresh(shape, dtype)
        with self._lock:
            for position, storage in enumerate(self._kept):
                if storage.nbytes() == size and _use_count(storage._cdata) == 1:
                    self._kept.append(self._kept.pop(position))
                    break
            else:
                storage = fresh((size,), torch.uint8).untyped_storage()
                self._kept.append(storage)
                while sum(kept.nbytes() for kept in self._kept) > self._limit:
                    del self._kept[0]
            result = torch.empty(0, dtype=dtype, device="cpu")
            return result.set_(storage, 0, tuple(shape))


def fresh(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """torch.empty on the CPU for results that live long; a large one asks for huge pages."""
    out = torch.empty(shape, dtype=dtype, device="cpu")
    size = out.numel() * out.element_size()
    if size >= _LARGE and _LIBC is not None:
        start = -(-out.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        length = (out.data_ptr() + size - start) // _HUGE_PAGE * _HUGE_PAGE
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _ADVICE)
    return out


_results = Recycler(KEPT_BYTES)
empty = _results.empty
