"""Device code of dequantize_4bit: the codebook is scaled once a block, then every element is one
permute."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import permute, simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine, dtype: str) -> Any:
    """The kernel for results of `dtype`.

    Its arguments: task counter; packed; absmax; address of 16 float32 values; out; element count;
    log2 of blocksize; blocks a task.
    """
    size = simd.SIZE[dtype]
    prepare, unpack = permute.unpack16(machine.level, dtype)
    address_of, take, scratch = simd.address_of, simd.take, simd.scratch
    load_f32, load_f32x16, load_u8x16 = simd.load_f32, simd.load_f32x16, simd.load_u8x16
    load_u8, mul, splat, store, least = (
        simd.load_u8,
        simd.mul,
        simd.splat_f32x16,
        simd.store,
        simd.least,
    )
    load_one = simd.load_f32 if size == 4 else simd.load_u16

    def dequantize(args):
        packed, absmax, values, out, n = args[1], args[2], load_f32x16(args[3]), args[4], args[5]
        shift, batch, spare = args[6], args[7], scratch(0)
        blocks = (n + (1 << shift) - 1) >> shift
        while True:
            start = take(address_of(args), batch)
            if start >= blocks:
                return
            for block in range(start, least(start + batch, blocks)):
                first = block << shift
                end = least(first + (1 << shift), n)
                whole = end - ((end - first) & 31)
                table = prepare(mul(values, splat(load_f32(absmax + block * 4))))
                for i in range(first, whole, 32):
                    unpack(out + i * size, table, load_u8x16(packed + (i >> 1)))
                if whole < end:
                    for i in range((end - whole + 1) >> 1):
                        store(spare + i, load_u8(packed + (whole >> 1) + i))
                    unpack(spare + 64, table, load_u8x16(spare))
                    for i in range(end - whole):
                        store(out + (whole + i) * size, load_one(spare + 64 + i * size))

    return dequantize
