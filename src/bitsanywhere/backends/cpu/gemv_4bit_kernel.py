"""Device code of the 4-bit product with one row of activations: weights are decoded in registers,
four rows of them at a time, so that they share the loads of the activations."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, permute, simd
from bitsanywhere.backends.cpu.machine import Machine


def build(machine: Machine, dtype: str, bf16: bool, fine: bool) -> Any:
    """The kernel for results of `dtype`.

    Its arguments: task counter; scratch counter; packed activations (`pack_rows_kernel`, height
    1); packed weight; absmax, absmax_8bit or 0, absmax_code, absmax_offset; codebook of 16 float32;
    bias or 0; out; N; K, a multiple of blocksize; log2 of blocksize; rows a task; scratch, with
    room for the float32 scales of 4 rows for each thread.

    Args:
        bf16: activations are bfloat16 and the processor has dot products of them.
        fine: with `bf16`, blocks of 32 elements.
    """
    row = _bf16_rows(fine) if bf16 else _f32_rows(machine.level)
    find_scales, write_one, size = decode.row_scales(), simd.scalar_writer(dtype), simd.SIZE[dtype]
    read_one, load_f32x16 = simd.scalar_reader(dtype), simd.load_f32x16
    scratch, store, load_f32 = simd.scratch, simd.store, simd.load_f32
    take, address_of, sum_lanes, least = simd.take, simd.address_of, simd.sum_lanes, simd.least

    def multiply(args):
        x, packed, absmax, codes, table, offset = (
            args[2], args[3], args[4], args[5], args[6], args[7],
        )  # fmt: skip
        values, bias, out, rows, k, shift = (
            load_f32x16(args[8]), args[9], args[10], args[11], args[12], args[13],
        )  # fmt: skip
        batch, blocks, half, end, sums = args[14], k >> shift, k >> 1, rows - 1, scratch(0)
        spare = args[15] + take(address_of(args) + 8, 1) * blocks * 16
        while True:
            start = take(address_of(args), batch)
            if start >= rows:
                return
            for n in range(start, least(start + batch, rows), 4):
                # Past the end, the last row is computed again.
                n1, n2, n3 = least(n + 1, end), least(n + 2, end), least(n + 3, end)
                scales = find_scales(
                    absmax, codes, table, offset, n * blocks, (n3 - n + 1) * blocks, spare
                )
                w = packed + n * half
                t0, t1, t2, t3 = row(
                    x, k, values, shift, blocks,
                    w, w + (n1 - n) * half, w + (n2 - n) * half, w + (n3 - n) * half,
                    scales, scales + (n1 - n) * blocks * 4, scales + (n2 - n) * blocks * 4,
                    scales + (n3 - n) * blocks * 4,
                )  # fmt: skip
                store(sums, sum_lanes(t0))
                store(sums + 4, sum_lanes(t1))
                store(sums + 8, sum_lanes(t2))
                store(sums + 12, sum_lanes(t3))
                for i in range(n3 - n + 1):
                    value = load_f32(sums + i * 4)
                    if bias != 0:
                        value += read_one(bias + (n + i) * size)
                    write_one(out + (n + i) * size, value)

    return multiply


def _bf16_rows(fine: bool) -> Any:
    tables, weights = decode.bf16_tables(fine)
    load, dot, zeros = simd.load_u16x32, permute.dot_bf16, simd.zeros_f32x16
    scratch, store, load_u8x16 = simd.scratch, simd.store, simd.load_u8x16

    @decode.inline
    def group(total, values, x, w, scales, g, shift, last):
        found = tables(values, scales, g, shift, last)
        v = load(w)
        total = dot(total, weights(found, v, 0), load(x + g * 256))
        total = dot(total, weights(found, v, 4), load(x + g * 256 + 64))
        total = dot(total, weights(found, v, 8), load(x + g * 256 + 128))
        return dot(total, weights(found, v, 12), load(x + g * 256 + 192))

    @decode.inline
    def rows(x, k, values, shift, blocks, w0, w1, w2, w3, s0, s1, s2, s3):
        t0, t1, t2, t3 = zeros(0), zeros(0), zeros(0), zeros(0)
        last, spare = blocks - 1, scratch(0)
        for g in range((k + 127) // 128):
            at = g * 64
            if (g + 1) * 128 > k:
                # The rest is copied, so that nothing past it is read; its activations are zero.
                for i in range(0, (k - g * 128) >> 1, 16):
                    store(spare + i, load_u8x16(w0 + at + i))
                    store(spare + 64 + i, load_u8x16(w1 + at + i))
                    store(spare + 128 + i, load_u8x16(w2 + at + i))
                    store(spare + 192 + i, load_u8x16(w3 + at + i))
                w0, w1, w2, w3 = spare - at, spare + 64 - at, spare + 128 - at, spare + 192 - at
            t0 = group(t0, values, x, w0 + at, s0, g, shift, last)
            t1 = group(t1, values, x, w1 + at, s1, g, shift, last)
            t2 = group(t2, values, x, w2 + at, s2, g, shift, last)
            t3 = group(t3, values, x, w3 + at, s3, g, shift, last)
        return t0, t1, t2, t3

    return rows


def _f32_rows(level: str) -> Any:
    lookup, load_u8x16, widen = permute.lookup_f32(level), simd.load_u8x16, simd.widen32
    load, fma, zeros, mul = simd.load_f32x16, simd.fma, simd.zeros_f32x16, simd.mul
    shr, keep, splat, load_f32 = simd.shr, simd.keep, simd.splat_f32x16, simd.load_f32

    @decode.inline
    def group(total, values, even, odd, w, scales, g, shift):
        found = mul(values, splat(load_f32(scales + ((g * 32) >> shift) * 4)))
        v = widen(load_u8x16(w + g * 16))
        total = fma(lookup(found, shr(v, 4)), even, total)
        return fma(lookup(found, keep(v, 15)), odd, total)

    @decode.inline
    def rows(x, k, values, shift, blocks, w0, w1, w2, w3, s0, s1, s2, s3):
        t0, t1, t2, t3 = zeros(0), zeros(0), zeros(0), zeros(0)
        for g in range(k // 32):
            even, odd = load(x + g * 128), load(x + g * 128 + 64)
            t0 = group(t0, values, even, odd, w0, s0, g, shift)
            t1 = group(t1, values, even, odd, w1, s1, g, shift)
            t2 = group(t2, values, even, odd, w2, s2, g, shift)
            t3 = group(t3, values, even, odd, w3, s3, g, shift)
        return t0, t1, t2, t3

    return rows
