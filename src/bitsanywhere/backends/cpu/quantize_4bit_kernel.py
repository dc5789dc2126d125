"""Device code of quantize_4bit."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, permute, simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine, dtype: str) -> Any:
    """The kernel for inputs of `dtype`.

    Its arguments: task counter; x and its element count; packed; absmax; log2 of blocksize;
    addresses of 16 float32 thresholds and of 16 int32 codes by interval; blocks a task.
    """
    read, read_one, size = simd.reader(dtype), simd.scalar_reader(dtype), simd.SIZE[dtype]
    interval, lookup = permute.interval(machine.level), permute.lookup_i32(machine.level)
    address_of, take, scratch = simd.address_of, simd.take, simd.scratch
    store, load_f32x16, load_u8 = simd.store, simd.load_f32x16, simd.load_u8
    larger, magnitude, largest = simd.larger, simd.magnitude, simd.largest
    zeros_i32x16, zeros_f32x16, splat = simd.zeros_i32x16, simd.zeros_f32x16, simd.splat_f32x16
    mul, pack_codes, load_i32x16 = simd.mul, simd.pack_codes, simd.load_i32x16
    reciprocal, least = decode.reciprocal, simd.least

    def quantize(args):
        x, n, packed, absmax, shift = args[1], args[2], args[3], args[4], args[5]
        thresholds, order, batch = load_f32x16(args[6]), load_i32x16(args[7]), args[8]
        spare = scratch(0)
        blocks = (n + (1 << shift) - 1) >> shift
        while True:
            start = take(address_of(args), batch)
            if start >= blocks:
                return
            for block in range(start, least(start + batch, blocks)):
                first = block << shift
                end = least(first + (1 << shift), n)
                whole = end - ((end - first) & 31)
                top = zeros_i32x16(0)
                for i in range(first, whole, 32):
                    top = larger(top, magnitude(read(x + i * size)))
                    top = larger(top, magnitude(read(x + (i + 16) * size)))
                if whole < end:
                    # What is left of the input, completed with zeros, as 32 float32.
                    store(spare, zeros_f32x16(0))
                    store(spare + 64, zeros_f32x16(0))
                    for i in range(whole, end):
                        store(spare + (i - whole) * 4, read_one(x + i * size))
                    top = larger(top, magnitude(load_f32x16(spare)))
                    top = larger(top, magnitude(load_f32x16(spare + 64)))
                scale = largest(top)
                store(absmax + block * 4, scale)
                factor = splat(reciprocal(scale))
                for i in range(first, whole, 32):
                    early = lookup(order, interval(thresholds, mul(read(x + i * size), factor)))
                    late = lookup(
                        order, interval(thresholds, mul(read(x + (i + 16) * size), factor))
                    )
                    store(packed + (i >> 1), pack_codes(early, late))
                if whole < end:
                    early = lookup(order, interval(thresholds, mul(load_f32x16(spare), factor)))
                    late = lookup(order, interval(thresholds, mul(load_f32x16(spare + 64), factor)))
                    store(spare, pack_codes(early, late))
                    for i in range((end - whole + 1) >> 1):
                        store(packed + (whole >> 1) + i, load_u8(spare + i))

    return quantize
