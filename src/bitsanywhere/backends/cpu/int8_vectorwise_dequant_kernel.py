"""Device code of int8_vectorwise_dequant, to float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitsanywhere.backends.cpu import int8_words, simd
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.ops.int8_vectorwise_dequant import INVERSE


def build(machine: Machine) -> Any:
    """The kernel.

    Its arguments: task counter; codes of (M, K); M; K; statistics; out; rows a task.
    """
    address_of, take, least, store = simd.address_of, simd.take, simd.least, simd.store
    load, load_one, load_f32 = int8_words.load_codes, int8_words.load_i8, simd.load_f32
    mul, splat, inverse = simd.mul, simd.splat_f32x16, np.float32(INVERSE)

    def dequantize(args):
        codes, m, k, stats, out, batch = args[1], args[2], args[3], args[4], args[5], args[6]
        whole = k - (k & 15)
        while True:
            start = take(address_of(args), batch)
            if start >= m:
                return
            for r in range(start, least(start + batch, m)):
                scale, row, to = load_f32(stats + r * 4), codes + r * k, out + r * k * 4
                for i in range(0, whole, 16):
                    store(to + i * 4, mul(mul(load(row + i), splat(scale)), splat(inverse)))
                for i in range(whole, k):
                    store(to + i * 4, np.float32(load_one(row + i)) * scale * inverse)

    return dequantize
