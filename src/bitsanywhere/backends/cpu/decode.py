"""Decoding packed weights for the matrix products: inline functions that several kernels share.

The order of elements is that of `panels.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from bitsanywhere.backends.cpu import permute, simd
from bitsanywhere.backends.cpu.panels import VECTOR_BYTES

ZERO, ONE, FLOAT32_MAX = np.float32(0), np.float32(1), np.finfo(np.float32).max


def inline(function: Any) -> Any:
    """A function that becomes part of each kernel that calls it."""
    return njit(function, error_model="numpy", inline="always")


@inline
def reciprocal(absmax):
    """1 / absmax, finite, and 0 where absmax is 0 or NaN; all float32."""
    inverse = ZERO
    if absmax > ZERO:
        inverse = ONE / absmax
        if inverse > FLOAT32_MAX:
            inverse = FLOAT32_MAX
    return inverse


def row_scales() -> Any:
    """Function (absmax, codes, table, offset, first, count, buffer) -> address of the float32
    scales of `count` blocks from `first` on; nested ones (`codes` not 0) are computed in `buffer`.
    """
    load_f32, load_u8, store = simd.load_f32, simd.load_u8, simd.store

    @inline
    def find(absmax, codes, table, offset, first, count, buffer):
        place = absmax + first * 4
        if codes != 0:
            place = buffer
            shift = load_f32(offset)
            for i in range(count):
                outer = load_f32(absmax + ((first + i) >> 8) * 4)
                inner = load_f32(table + load_u8(codes + first + i) * 4)
                store(buffer + i * 4, inner * outer + shift)
        return place

    return find


def bf16_tables(fine: bool) -> tuple[Any, Any]:
    """How 128 weights are decoded to bfloat16.

    Args:
        fine: for blocks of 32 elements; otherwise a block has 64 or more.

    Returns:
        function (values, scales, group, shift, last) -> the scaled codebooks of a group, and
        function (tables, vector, start) -> the weights in bits start to start+3 of each word.
    """
    load_f32, mul, splat = simd.load_f32, simd.mul, simd.splat_f32x16
    narrow_pair, lookup = permute.narrow_pair, permute.lookup_pair
    lookup_four, nibble, least = permute.lookup_four, permute.nibble_in_half, simd.least
    quarter = permute.nibble_in_quarter

    @inline
    def scaled(values, scales, block, last):
        return mul(values, splat(load_f32(scales + least(block, last) * 4)))

    @inline
    def two_tables(values, scales, group, shift, last):
        first = scaled(values, scales, (group * 128) >> shift, last)
        return narrow_pair(first, scaled(values, scales, (group * 128 + 64) >> shift, last))

    @inline
    def four_tables(values, scales, group, shift, last):
        block = group * 4
        low = narrow_pair(
            scaled(values, scales, block, last), scaled(values, scales, block + 1, last)
        )
        high = narrow_pair(
            scaled(values, scales, block + 2, last), scaled(values, scales, block + 3, last)
        )
        return low, high

    @inline
    def in_two(tables, vector, start):
        return lookup(tables, nibble(vector, start))

    @inline
    def in_four(tables, vector, start):
        return lookup_four(tables[0], quarter(vector, start), tables[1])

    return (four_tables, in_four) if fine else (two_tables, in_two)


def bf16_row(fine: bool, height: int) -> Any:
    """Function that decodes groups of a weight row to bfloat16, into a panel of `height` rows."""
    tables, weights = bf16_tables(fine)
    load, store, load_u8x16 = simd.load_u16x32, simd.store, simd.load_u8x16
    scratch, zeros, step = simd.scratch, simd.zeros_f32x16, height * VECTOR_BYTES

    @inline
    def unpack(to, packed, values, scales, start, count, k, shift, last):
        spare = scratch(0)
        for g in range(start, start + count):
            source = packed + g * 64
            if (g + 1) * 128 > k:
                store(spare, zeros(0))
                for i in range(0, (k - g * 128) >> 1, 16):
                    store(spare + i, load_u8x16(source + i))
                source = spare
            found, v = tables(values, scales, g, shift, last), load(source)
            place = to + (g - start) * 4 * step
            store(place, weights(found, v, 0))
            store(place + step, weights(found, v, 4))
            store(place + 2 * step, weights(found, v, 8))
            store(place + 3 * step, weights(found, v, 12))

    return unpack


def f32_row(level: str, height: int) -> Any:
    """As `bf16_row`, to float32."""
    lookup, load_u8x16, widen = permute.lookup_f32(level), simd.load_u8x16, simd.widen32
    store, mul, shr, keep = simd.store, simd.mul, simd.shr, simd.keep
    splat, load_f32, step = simd.splat_f32x16, simd.load_f32, height * VECTOR_BYTES

    @inline
    def unpack(to, packed, values, scales, start, count, k, shift, last):
        for g in range(start, start + count):
            found = mul(values, splat(load_f32(scales + ((g * 32) >> shift) * 4)))
            v = widen(load_u8x16(packed + g * 16))
            place = to + (g - start) * 2 * step
            store(place, lookup(found, shr(v, 4)))
            store(place + step, lookup(found, keep(v, 15)))

    return unpack
