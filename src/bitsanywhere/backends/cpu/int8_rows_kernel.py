"""Device code of the int8 product with few rows of activations, for AVX-512 VNNI.

Its instruction multiplies uint8 by int8, so activations come as code + 128, and 128 times the sum
of the weight row is taken off. That sum is one more dot product, with a first row of ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitsanywhere.backends.cpu import int8_words, simd
from bitsanywhere.backends.cpu.int8_words import WEIGHT_ROWS
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.ops.int8_mm_dequant import INVERSE_SQUARE
from bitsanywhere.ops.int8_vectorwise_dequant import INVERSE


def build(machine: Machine, dtype: str, height: int) -> Any:
    """The kernel for results of `dtype`, "int32" for the bare product.

    Its arguments: task counter; scratch counter; activations; bytes between their rows, a multiple
    of 64; weight of (N, K); K; N; statistics of activations; of the weight; float32 bias or 0; out;
    M; weight rows a task; int64 outlier columns; how many; float32 activations there, their number
    rounded up to a multiple of 16 with zeros; scratch; its bytes for each thread, 16 for each of
    these. Activations are uint8, zero past K; a row of ones comes before them, and as many of
    zeros after them as make their number a multiple of `height`.

    Args:
        height: rows of activations at a time.
    """
    scaled = dtype != "int32"
    write_one = simd.scalar_writer(dtype) if scaled else simd.store
    size = simd.SIZE[dtype] if scaled else 4
    first, further = int8_words.dots(height, ahead=True), int8_words.dots(height, ahead=False)
    load_f32, load_u8, load_i8 = simd.load_f32, simd.load_u8, int8_words.load_i8
    load_i32, load_i64, load_f32x16 = int8_words.load_i32, int8_words.load_i64, simd.load_f32x16
    zeros_f32x16, fma, sum_lanes = simd.zeros_f32x16, simd.fma, simd.sum_lanes
    address_of, take, least, store = simd.address_of, simd.take, simd.least, simd.store
    scratch, zeros = simd.scratch, simd.zeros_i32x16
    square, single = np.float32(INVERSE_SQUARE), np.float32(INVERSE)

    def run(args):
        a, stride, w, k, n = args[2], args[3], args[4], args[5], args[6]
        row_stats, col_stats, bias, out = args[7], args[8], args[9], args[10]
        m, batch, steps, rest = args[11], args[12], k >> 6, k & 63
        columns, count, values = args[13], args[14], args[15]
        apart, wide = args[16] + take(address_of(args) + 8, 1) * args[17], (count + 15) & -16
        ahead = WEIGHT_ROWS * k
        tail, sums, totals = scratch(0), scratch(0), scratch(0)
        for o in range(0, 4 * wide, 16):
            store(apart + o * 4, zeros(0))
        while True:
            start = take(address_of(args), batch)
            if start >= n:
                return
            for i in range(start, least(start + batch, n), WEIGHT_ROWS):
                # Past the end, the last row is computed again.
                i1, i2, i3 = least(i + 1, n - 1), least(i + 2, n - 1), least(i + 3, n - 1)
                w0, w1, w2, w3 = w + i * k, w + i1 * k, w + i2 * k, w + i3 * k
                if rest > 0:
                    # The rest is copied, so that nothing past it is read.
                    for j in range(WEIGHT_ROWS):
                        store(tail + j * 64, zeros(0))
                        end = w + least(i + j, n - 1) * k + steps * 64
                        for t in range(rest):
                            store(tail + j * 64 + t, load_u8(end + t))
                for o in range(count):
                    column, place = load_i64(columns + o * 8), apart + o * 4
                    store(place, np.float32(load_i8(w0 + column)))
                    store(place + wide * 4, np.float32(load_i8(w1 + column)))
                    store(place + wide * 8, np.float32(load_i8(w2 + column)))
                    store(place + wide * 12, np.float32(load_i8(w3 + column)))
                for r in range(0, m + 1, height):
                    x = a + r * stride
                    store(totals, zeros(0))
                    store(totals + 64, zeros(0))
                    if r == 0:
                        first(x, stride, w0, w1, w2, w3, steps, totals, ahead)
                    else:
                        further(x, stride, w0, w1, w2, w3, steps, totals, 0)
                    if rest > 0:
                        x += steps * 64
                        further(x, stride, tail, tail + 64, tail + 128, tail + 192, 1, totals, 0)
                    if r == 0:
                        for j in range(WEIGHT_ROWS):
                            store(sums + j * 4, load_i32(totals + j * 4))
                    for q in range(r == 0, least(height, m + 1 - r)):
                        row = r + q - 1
                        for j in range(i3 - i + 1):
                            at = row * n + i + j
                            total = load_i32(totals + (q * WEIGHT_ROWS + j) * 4)
                            total = np.int32(total - 128 * load_i32(sums + j * 4))
                            if scaled:
                                scale = load_f32(col_stats + (i + j) * 4)
                                value = np.float32(total)
                                value *= load_f32(row_stats + row * 4) * scale
                                value *= square
                                if count > 0:
                                    part = zeros_f32x16(0)
                                    for o in range(0, wide, 16):
                                        part = fma(
                                            load_f32x16(values + (row * wide + o) * 4),
                                            load_f32x16(apart + (j * wide + o) * 4),
                                            part,
                                        )
                                    value += sum_lanes(part) * (scale * single)
                                if bias != 0:
                                    value += load_f32(bias + (i + j) * 4)
                                write_one(out + at * size, value)
                            else:
                                write_one(out + at * size, total)

    return run
