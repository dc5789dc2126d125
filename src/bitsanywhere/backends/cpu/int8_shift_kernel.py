"""Device code that brings activations into the form that `int8_rows_kernel.py` takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitsanywhere.backends.cpu import int8_words, simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine) -> Any:
    """The kernel.

    Its arguments: task counter; int8 codes of (M, K); M; K; out; bytes between its rows; how many
    rows it has. Row 0 becomes ones, row i + 1 the codes of row i plus 128, all else zeros. A task
    is a row.
    """
    address_of, take, store, zeros = simd.address_of, simd.take, simd.store, simd.zeros_i32x16
    load_u8x16, load_u8, shifted = simd.load_u8x16, simd.load_u8, int8_words.shifted
    ones, one, offset = int8_words.ones_u8x16, np.uint8(1), np.uint8(128)

    def shift(args):
        codes, m, k, out, stride, rows = args[1], args[2], args[3], args[4], args[5], args[6]
        whole = k - (k & 15)
        while True:
            r = take(address_of(args), 1)
            if r >= rows:
                return
            row, to = codes + (r - 1) * k, out + r * stride
            for i in range(0, stride, 64):
                store(to + i, zeros(0))
            if r == 0:
                for i in range(0, whole, 16):
                    store(to + i, ones(0))
                for i in range(whole, k):
                    store(to + i, one)
            elif r <= m:
                for i in range(0, whole, 16):
                    store(to + i, shifted(load_u8x16(row + i)))
                for i in range(whole, k):
                    store(to + i, np.uint8(load_u8(row + i) ^ offset))

    return shift
