"""Device code of the 4-bit product with few rows of activations: weights are decoded in registers,
four rows of them at a time, so that they share the loads of the activations."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, pack_rows_kernel, permute, rows, simd
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.backends.cpu.panels import BF16, F32, WEIGHT_ROWS


def build(machine: Machine, dtype: str, bf16: bool, fine: bool, height: int) -> Any:
    """The kernel for activations and results of `dtype`.

    Its arguments: task counter; scratch counter; activations, row-major; packed weight; absmax,
    absmax_8bit or 0, absmax_code, absmax_offset; codebook of 16 float32; bias or 0; out; N; K, a
    multiple of blocksize; log2 of blocksize; rows of activations, at most `height`; weight rows a
    task; scratch; its bytes for each thread, which hold `height` rows of activations in the
    layout of `panels.py` and the float32 scales of 4 weight rows.

    Args:
        bf16: activations are bfloat16 and the processor has dot products of them.
        fine: with `bf16`, blocks of 32 elements.
        height: rows of activations at a time.
    """
    order = BF16 if bf16 else F32
    group, panel_bytes = order.group, order.vectors * 64 * height
    multiply = _bf16_rows(fine, height) if bf16 else _f32_rows(machine.level, height)
    fill, store_totals = pack_rows_kernel.row(dtype, bf16), rows.words(bf16, height)[2]
    find_scales, write_one, size = decode.row_scales(), simd.scalar_writer(dtype), simd.SIZE[dtype]
    read_one, load_f32x16, scratch = simd.scalar_reader(dtype), simd.load_f32x16, simd.scratch
    take, address_of, least, load_f32 = simd.take, simd.address_of, simd.least, simd.load_f32

    def run(args):
        packed, absmax, codes, table, offset = args[3], args[4], args[5], args[6], args[7]
        values, bias, out, n, k, shift = (
            load_f32x16(args[8]), args[9], args[10], args[11], args[12], args[13],
        )  # fmt: skip
        m, batch, blocks, half = args[14], args[15], k >> shift, k >> 1
        x = args[16] + take(address_of(args) + 8, 1) * args[17]
        spare, sums, filled = x + (k + group - 1) // group * panel_bytes, scratch(0), False
        while True:
            start = take(address_of(args), batch)
            if start >= n:
                return
            if not filled:
                filled = True
                for r in range(height):
                    fill(x + r * 64, height * 64, args[2] + least(r, m - 1) * k * size, k)
            for i in range(start, least(start + batch, n), WEIGHT_ROWS):
                # Past the end, the last row is computed again.
                i1, i2, i3 = least(i + 1, n - 1), least(i + 2, n - 1), least(i + 3, n - 1)
                s = find_scales(
                    absmax, codes, table, offset, i * blocks, (i3 - i + 1) * blocks, spare
                )
                w = packed + i * half
                found = multiply(
                    x, k, values, shift, blocks,
                    w, w + (i1 - i) * half, w + (i2 - i) * half, w + (i3 - i) * half,
                    s, s + (i1 - i) * blocks * 4, s + (i2 - i) * blocks * 4,
                    s + (i3 - i) * blocks * 4,
                )  # fmt: skip
                store_totals(sums, found)
                for j in range(i3 - i + 1):
                    for r in range(m):
                        value = load_f32(sums + (r * WEIGHT_ROWS + j) * 4)
                        if bias != 0:
                            value += read_one(bias + (i + j) * size)
                        write_one(out + (r * n + i + j) * size, value)

    return run


def _bf16_rows(fine: bool, height: int) -> Any:
    tables, weights = decode.bf16_tables(fine)
    zeros, multiply, _ = rows.words(True, height)
    load, scratch, store, load_u8x16 = simd.load_u16x32, simd.scratch, simd.store, simd.load_u8x16
    prefetch, vector, panel = simd.prefetch, height * 64, height * 256

    @decode.inline
    def dots(x, k, values, shift, blocks, w0, w1, w2, w3, s0, s1, s2, s3):
        totals, last, spare = zeros(0), blocks - 1, scratch(0)
        # The four rows to come, line by line.
        ahead = WEIGHT_ROWS * (k >> 1)
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
            prefetch(w0 + at + ahead)
            prefetch(w1 + at + ahead)
            prefetch(w2 + at + ahead)
            prefetch(w3 + at + ahead)
            f0, f1 = tables(values, s0, g, shift, last), tables(values, s1, g, shift, last)
            f2, f3 = tables(values, s2, g, shift, last), tables(values, s3, g, shift, last)
            v0, v1, v2, v3 = load(w0 + at), load(w1 + at), load(w2 + at), load(w3 + at)
            place = x + g * panel
            found = weights(f0, v0, 0), weights(f1, v1, 0), weights(f2, v2, 0), weights(f3, v3, 0)
            totals = multiply(totals, found, place)
            found = weights(f0, v0, 4), weights(f1, v1, 4), weights(f2, v2, 4), weights(f3, v3, 4)
            totals = multiply(totals, found, place + vector)
            found = weights(f0, v0, 8), weights(f1, v1, 8), weights(f2, v2, 8), weights(f3, v3, 8)
            totals = multiply(totals, found, place + 2 * vector)
            found = (
                weights(f0, v0, 12), weights(f1, v1, 12), weights(f2, v2, 12), weights(f3, v3, 12),
            )  # fmt: skip
            totals = multiply(totals, found, place + 3 * vector)
        return totals

    return dots


def _f32_rows(level: str, height: int) -> Any:
    lookup, load_u8x16, widen = permute.lookup_f32(level), simd.load_u8x16, simd.widen32
    mul, shr, keep, splat, load_f32 = (
        simd.mul, simd.shr, simd.keep, simd.splat_f32x16, simd.load_f32,
    )  # fmt: skip
    zeros, multiply, _ = rows.words(False, height)

    @decode.inline
    def table(values, scales, g, shift):
        return mul(values, splat(load_f32(scales + ((g * 32) >> shift) * 4)))

    @decode.inline
    def dots(x, k, values, shift, blocks, w0, w1, w2, w3, s0, s1, s2, s3):
        totals = zeros(0)
        for g in range(k // 32):
            at, place = g * 16, x + g * 128 * height
            f0, f1 = table(values, s0, g, shift), table(values, s1, g, shift)
            f2, f3 = table(values, s2, g, shift), table(values, s3, g, shift)
            v0, v1 = widen(load_u8x16(w0 + at)), widen(load_u8x16(w1 + at))
            v2, v3 = widen(load_u8x16(w2 + at)), widen(load_u8x16(w3 + at))
            found = (
                lookup(f0, shr(v0, 4)), lookup(f1, shr(v1, 4)),
                lookup(f2, shr(v2, 4)), lookup(f3, shr(v3, 4)),
            )  # fmt: skip
            totals = multiply(totals, found, place)
            found = (
                lookup(f0, keep(v0, 15)), lookup(f1, keep(v1, 15)),
                lookup(f2, keep(v2, 15)), lookup(f3, keep(v3, 15)),
            )  # fmt: skip
            totals = multiply(totals, found, place + 64 * height)
        return totals

    return dots
