"""Device code of int8_vectorwise_quant: two passes over each row, the second from the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitsanywhere.backends.cpu import int8_words, simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine, dtype: str, apart: bool) -> Any:
    """The kernel for inputs of `dtype`.

    Its arguments: task counter; x of (M, K); M; K; codes; statistics; float32 bits of the
    threshold; a byte for each column, set to 1 where there is an outlier; rows a task.

    Args:
        apart: whether there is a threshold.
    """
    read, read_one, size = simd.reader(dtype), simd.scalar_reader(dtype), simd.SIZE[dtype]
    address_of, take, least, store = simd.address_of, simd.take, simd.least, simd.store
    scratch, zeros_f32x16, zeros_i32x16 = simd.scratch, simd.zeros_f32x16, simd.zeros_i32x16
    larger, magnitude, largest, splat = simd.larger, simd.magnitude, simd.largest, simd.splat_f32x16
    load_f32x16, load_u8, mul = simd.load_f32x16, simd.load_u8, simd.mul
    inliers, outliers, codes_of = int8_words.inliers, int8_words.outliers, int8_words.codes_of
    one, full, set_flag = np.float32(1), np.float32(127), np.uint8(1)

    def quantize(args):
        x, m, k, codes, stats = args[1], args[2], args[3], args[4], args[5]
        threshold, flags, batch, spare = args[6], args[7], args[8], scratch(0)
        whole = k - (k & 15)
        while True:
            start = take(address_of(args), batch)
            if start >= m:
                return
            for r in range(start, least(start + batch, m)):
                row, out, top = x + r * k * size, codes + r * k, zeros_i32x16(0)
                store(spare, zeros_f32x16(0))
                for i in range(whole, k):
                    store(spare + (i - whole) * 4, read_one(row + i * size))
                for i in range(0, k, 16):
                    values = load_f32x16(spare)
                    if i < whole:
                        values = read(row + i * size)
                    found = magnitude(values)
                    if apart:
                        marks = outliers(found, threshold)
                        if marks != 0:
                            for lane in range(16):
                                if (marks >> lane) & 1:
                                    store(flags + i + lane, set_flag)
                            found = inliers(found, threshold)
                    top = larger(top, found)
                scale = largest(top)
                store(stats + r * 4, scale)
                factor = splat(one / scale * full)
                for i in range(0, whole, 16):
                    store(out + i, codes_of(mul(read(row + i * size), factor)))
                if whole < k:
                    store(spare, codes_of(mul(load_f32x16(spare), factor)))
                    for i in range(k - whole):
                        store(out + whole + i, load_u8(spare + i))

    return quantize
