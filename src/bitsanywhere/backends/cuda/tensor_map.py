"""Descriptions of matrices for Hopper's copy engine (TMA)."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from bitsanywhere.backends.cuda.jit.driver import driver

_BYTES = 128
_UINT8, _NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_256, _ZEROS = 0, 0, 3, 3, 0
# Bytes of a row that one copy takes: as many as the swizzle spans.
BOX_BYTES = 128


@lru_cache(maxsize=4096)
def tensor_map(address: int, rows: int, width: int, stride: int, box_rows: int) -> bytes:
    """A CUtensorMap of a matrix of bytes, copied in boxes of `box_rows` x 128 swizzled bytes.

    Args:
        address: of the first row, a multiple of 16.
        rows, width: its size; copies beyond it bring zeros.
        stride: bytes from row to row, a multiple of 16.
        box_rows: at most 256.

    Raises:
        DriverError: the driver refuses the description.
    """
    room = ctypes.create_string_buffer(_BYTES + 64)
    # The driver wants its address to be a multiple of 64.
    offset = -ctypes.addressof(room) % 64
    of_driver = driver()
    code = of_driver._library.cuTensorMapEncodeTiled(
        ctypes.c_void_p(ctypes.addressof(room) + offset),
        _UINT8,
        2,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(width, rows),
        (ctypes.c_uint64 * 1)(stride),
        (ctypes.c_uint32 * 2)(BOX_BYTES, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        _NO_INTERLEAVE,
        _SWIZZLE_128,
        _PROMOTE_256,
        _ZEROS,
    )
    of_driver.check("cuTensorMapEncodeTiled", code)
    return room.raw[offset : offset + _BYTES]
