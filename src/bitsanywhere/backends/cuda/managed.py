"""Memory that CPU and GPU share (CUDA managed memory), as torch tensors.

Its pages lie where they were used last: the driver moves them when the other side touches them, or
before, when asked to. So states may be larger than the GPU's memory.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from bitsanywhere.backends.cuda.jit import current_stream
from bitsanywhere.backends.cuda.jit.driver import driver
from bitsanywhere.errors import BackendUnavailable, BitsAnywhereError

_INTEGRATED, _MANAGED_MEMORY, _CONCURRENT_ACCESS = 18, 83, 89
_ATTACH_GLOBAL = 1
_CPU = -1
# Left to the system and to torch.
_RESERVE_BYTES = 512 << 20
_CGROUP = Path("/sys/fs/cgroup")


class PagedMemoryError(BitsAnywhereError, MemoryError):
    """GPU and host together cannot hold what was asked for."""


@cache
def why_not(index: int) -> str | None:
    """Why tensors of a device are not paged, or None if they can be."""
    try:
        of_driver = driver()
    except BackendUnavailable as error:
        return str(error)
    device, value = ctypes.c_int(), ctypes.c_int()
    library = of_driver._library
    of_driver.check("cuDeviceGet", library.cuDeviceGet(ctypes.byref(device), index))

    def has(attribute: int) -> bool:
        code = library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        of_driver.check("cuDeviceGetAttribute", code)
        return bool(value.value)

    if has(_INTEGRATED):
        return "the GPU uses the memory of the CPU anyway"
    if not has(_MANAGED_MEMORY) or not has(_CONCURRENT_ACCESS):
        return "CPU and GPU cannot use managed memory at the same time on this platform"
    return None


class _Allocation:
    """Managed memory, freed with the last tensor in it; torch takes it without copying."""

    def __init__(self, size: int, index: int) -> None:
        of_driver, address = driver(), ctypes.c_void_p()
        with of_driver.current(index):
            code = of_driver._library.cuMemAllocManaged(
                ctypes.byref(address), ctypes.c_size_t(size), _ATTACH_GLOBAL
            )
        of_driver.check(f"cuMemAllocManaged of {size} bytes", code)
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address.value, False),
            "strides": None,
            "version": 3,
        }
        weakref.finalize(self, _free, address, index).atexit = False


# Waiting until no CUDA graph is captured, which freeing would break.
_unfreed: list[tuple[ctypes.c_void_p, int]] = []


def _free(address: ctypes.c_void_p, index: int) -> None:
    """Frees managed memory once every stream is done with it, for which the driver waits."""
    _unfreed.append((address, index))
    if torch.cuda.is_current_stream_capturing():
        return
    while _unfreed:
        address, index = _unfreed.pop()
        with driver().current(index):
            driver()._library.cuCtxSynchronize()
            driver()._library.cuMemFree_v2(address)


def empty(shape: Sequence[int], dtype: torch.dtype, index: int) -> torch.Tensor:
    """A tensor of a CUDA device in managed memory, of any content.

    Raises:
        PagedMemoryError: GPU and host together have not that much memory left.
    """
    size = math.prod(shape) * dtype.itemsize
    device = torch.device("cuda", index)
    if not size:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    on_device, on_host = torch.cuda.mem_get_info(index)[0], host_bytes()
    if size > on_device + on_host - _RESERVE_BYTES:
        raise PagedMemoryError(
            f"A paged tensor of {size / 2**30:.1f} GiB, {dtype} {tuple(shape)}",
            f"The GPU has {on_device / 2**30:.1f} GiB left and the host {on_host / 2**30:.1f} GiB.",
            "Take 8-bit states, train fewer parameters, or free memory.",
        )
    with torch.cuda.device(index):
        flat = torch.as_tensor(_Allocation(size, index), device=device)
    return flat.view(dtype).view(tuple(shape))


def host_bytes() -> int:
    """Bytes of host memory that this process may still take; large where that is unknown."""
    free = [1 << 62]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    try:
        # A container's limit; the file says "max" where there is none.
        limit = int((_CGROUP / "memory.max").read_text())
        free.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(min(free), 0)


def prefetch(tensor: torch.Tensor, to_cpu: bool) -> None:
    """Asks the driver to move a tensor's pages, in the order of the current stream.

    Nothing happens while a CUDA graph is captured, which cannot hold such a request.
    """
    index = tensor.get_device()
    if torch.cuda.is_current_stream_capturing() or not tensor.numel():
        return
    of_driver, device = driver(), ctypes.c_int(_CPU)
    library = of_driver._library
    if not to_cpu:
        of_driver.check("cuDeviceGet", library.cuDeviceGet(ctypes.byref(device), index))
    with of_driver.current(index):
        # This name keeps its first signature in every driver; CUDA 13 headers call its second one.
        code = library.cuMemPrefetchAsync(
            ctypes.c_void_p(tensor.data_ptr()),
            ctypes.c_size_t(tensor.numel() * tensor.element_size()),
            device,
            ctypes.c_void_p(current_stream(index)),
        )
    of_driver.check("cuMemPrefetchAsync", code)
