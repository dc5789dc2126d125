"""Device code of int8_mm_dequant."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitsanywhere.backends.cpu import int8_words, simd
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.ops.int8_mm_dequant import INVERSE_SQUARE
from bitsanywhere.ops.int8_vectorwise_dequant import INVERSE


def build(machine: Machine, dtype: str) -> Any:
    """The kernel for results of `dtype`.

    Its arguments: task counter; int32 product of (M, N); M; N; statistics of rows; of columns;
    float32 bias or 0; float32 addend of (M, N), to be scaled as the weight is, or 0; out; rows a
    task.
    """
    write, write_one, size = simd.writer(dtype), simd.scalar_writer(dtype), simd.SIZE[dtype]
    address_of, take, least, mul, add = simd.address_of, simd.take, simd.least, simd.mul, simd.add
    load_f32x16, load_f32, splat = simd.load_f32x16, simd.load_f32, simd.splat_f32x16
    load_i32x16, load_i32, to_f32 = simd.load_i32x16, int8_words.load_i32, int8_words.to_f32
    square, single = np.float32(INVERSE_SQUARE), np.float32(INVERSE)

    def dequantize(args):
        product, m, n, row_stats, col_stats = args[1], args[2], args[3], args[4], args[5]
        bias, extra, out, batch = args[6], args[7], args[8], args[9]
        whole = n - (n & 15)
        while True:
            start = take(address_of(args), batch)
            if start >= m:
                return
            for r in range(start, least(start + batch, m)):
                scale, first = load_f32(row_stats + r * 4), r * n
                for j in range(0, whole, 16):
                    at, columns = first + j, load_f32x16(col_stats + j * 4)
                    value = to_f32(load_i32x16(product + at * 4))
                    value = mul(mul(value, mul(splat(scale), columns)), splat(square))
                    if extra != 0:
                        addend = load_f32x16(extra + at * 4)
                        value = add(value, mul(addend, mul(columns, splat(single))))
                    if bias != 0:
                        value = add(value, load_f32x16(bias + j * 4))
                    write(out + at * size, value)
                for j in range(whole, n):
                    at, column = first + j, load_f32(col_stats + j * 4)
                    single_value = np.float32(load_i32(product + at * 4))
                    single_value *= scale * column
                    single_value *= square
                    if extra != 0:
                        single_value += load_f32(extra + at * 4) * (column * single)
                    if bias != 0:
                        single_value += load_f32(bias + j * 4)
                    write_one(out + at * size, single_value)

    return dequantize
