"""Device code of dequantize_blockwise."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine, dtype: str) -> Any:
    """The kernel for results of `dtype`.

    Its arguments: task counter; codes; absmax; address of 256 float32 values; out; element count;
    log2 of blocksize; blocks a task.
    """
    write, write_one, size = simd.writer(dtype), simd.scalar_writer(dtype), simd.SIZE[dtype]
    address_of, take, mul, splat = simd.address_of, simd.take, simd.mul, simd.splat_f32x16
    load_f32, load_u8, load_u8x16 = simd.load_f32, simd.load_u8, simd.load_u8x16
    gather, widen, least = simd.gather_f32x16, simd.widen32, simd.least

    def dequantize(args):
        codes, absmax, values, out, n = args[1], args[2], args[3], args[4], args[5]
        shift, batch = args[6], args[7]
        blocks = (n + (1 << shift) - 1) >> shift
        while True:
            start = take(address_of(args), batch)
            if start >= blocks:
                return
            for block in range(start, least(start + batch, blocks)):
                first = block << shift
                end = least(first + (1 << shift), n)
                whole = end - ((end - first) & 15)
                scale = load_f32(absmax + block * 4)
                factor = splat(scale)
                for i in range(first, whole, 16):
                    found = gather(values, widen(load_u8x16(codes + i)))
                    write(out + i * size, mul(found, factor))
                for i in range(whole, end):
                    value = load_f32(values + load_u8(codes + i) * 4)
                    write_one(out + i * size, value * scale)

    return dequantize
