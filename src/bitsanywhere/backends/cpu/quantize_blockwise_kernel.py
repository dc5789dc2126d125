"""Device code of quantize_blockwise: a table of the grid of `formats.base` gives each code."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine, dtype: str) -> Any:
    """The kernel for inputs of `dtype`.

    Its arguments: task counter; x and its element count; out; absmax; log2 of blocksize; address of
    the uint8 codes of the 65536 grid points, then that of zero; blocks a task.
    """
    read, read_one, size = simd.reader(dtype), simd.scalar_reader(dtype), simd.SIZE[dtype]
    address_of, take, scratch, store = simd.address_of, simd.take, simd.scratch, simd.store
    larger, magnitude, largest = simd.larger, simd.magnitude, simd.largest
    zeros_i32x16, zeros_f32x16, splat = simd.zeros_i32x16, simd.zeros_f32x16, simd.splat_f32x16
    mul, grid_point, gather = simd.mul, simd.grid_point, simd.gather_u8x16
    load_f32x16, load_u8, least = simd.load_f32x16, simd.load_u8, simd.least
    reciprocal = decode.reciprocal

    def quantize(args):
        x, n, out, absmax, shift = args[1], args[2], args[3], args[4], args[5]
        table, batch, spare = args[6], args[7], scratch(0)
        blocks = (n + (1 << shift) - 1) >> shift
        while True:
            start = take(address_of(args), batch)
            if start >= blocks:
                return
            for block in range(start, least(start + batch, blocks)):
                first = block << shift
                end = least(first + (1 << shift), n)
                whole = end - ((end - first) & 15)
                top = zeros_i32x16(0)
                for i in range(first, whole, 16):
                    top = larger(top, magnitude(read(x + i * size)))
                if whole < end:
                    store(spare, zeros_f32x16(0))
                    for i in range(whole, end):
                        store(spare + (i - whole) * 4, read_one(x + i * size))
                    top = larger(top, magnitude(load_f32x16(spare)))
                scale = largest(top)
                store(absmax + block * 4, scale)
                factor = splat(reciprocal(scale))
                for i in range(first, whole, 16):
                    store(out + i, gather(table, grid_point(mul(read(x + i * size), factor))))
                if whole < end:
                    point = grid_point(mul(load_f32x16(spare), factor))
                    store(spare, gather(table, point))
                    for i in range(end - whole):
                        store(out + whole + i, load_u8(spare + i))

    return quantize
