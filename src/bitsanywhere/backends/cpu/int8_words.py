"""Words of the int8 kernels: dot products of bytes, rounding to codes, looking for outliers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from bitsanywhere.backends.cpu.simd import (
    I8,
    I16,
    I32,
    I64,
    F32x16,
    I32x16,
    U8x16,
    at,
    llvm_call,
    prefetch_code,
    splat,
    word,
)

VECTOR_BYTES = 64
WEIGHT_ROWS = 4


def dots(height: int, ahead: bool) -> Any:
    """Word (a, stride, w0, w1, w2, w3, steps, sums, distance), for AVX-512 VNNI.

    Adds the dot product of each of `height` rows of uint8 at ``a``, ``stride`` bytes apart, with
    each of four rows of int8, all ``steps`` * 64 bytes long, to the int32 at ``sums``: four for
    the first row of ``a``, then four for the next. With `ahead`, asks for what lies ``distance``
    bytes further in the rows of weights.
    """

    @intrinsic
    def multiply(typingctx, a, stride, w0, w1, w2, w3, steps, sums, distance):
        def generate(context, builder, signature, values):
            a, stride, *weights, steps, sums, distance = values
            rows = [builder.add(a, builder.mul(stride, I64(r))) for r in range(height)]
            _emit_dots(builder, rows, weights, steps, sums, distance if ahead else None)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return multiply


def _emit_dots(
    b: ir.IRBuilder,
    rows: list[ir.Value],
    weights: list[ir.Value],
    steps: ir.Value,
    sums: ir.Value,
    ahead: ir.Value | None,
) -> None:
    kind = I32x16.llvm
    before, body, after = b.block, b.append_basic_block("step"), b.append_basic_block("sums")
    b.cbranch(b.icmp_signed(">", steps, I64(0)), body, after)
    b.position_at_end(body)
    step = b.phi(I64)
    found = [[b.phi(kind) for _ in weights] for _ in rows]
    offset = b.mul(step, I64(VECTOR_BYTES))
    if ahead is not None:
        for row in weights:
            # The first-level cache is too small for four rows more.
            prefetch_code(b, b.add(b.add(row, offset), ahead), locality=2)
    xs = [b.load(at(b, b.add(row, offset), kind), align=1) for row in rows]
    ws = [b.load(at(b, b.add(row, offset), kind), align=1) for row in weights]
    new = [
        [llvm_call(b, "llvm.x86.avx512.vpdpbusd.512", kind, t, x, w) for t, w in zip(row, ws)]
        for row, x in zip(found, xs)
    ]
    following = b.add(step, I64(1))
    step.add_incoming(I64(0), before)
    step.add_incoming(following, body)
    for phis, results in zip(found, new):
        for phi, result in zip(phis, results):
            phi.add_incoming(kind(None), before)
            phi.add_incoming(result, body)
    b.cbranch(b.icmp_signed("<", following, steps), body, after)
    b.position_at_end(after)
    for r, row in enumerate(new):
        for w, result in enumerate(row):
            total = b.phi(kind)
            total.add_incoming(kind(None), before)
            total.add_incoming(result, body)
            new[r][w] = total
    for i, total in enumerate(total for row in new for total in row):
        place = at(b, b.add(sums, I64(4 * i)), I32)
        whole = llvm_call(b, "llvm.vector.reduce.add.v16i32", I32, total)
        b.store(b.add(b.load(place, align=4), whole), place, align=4)


def _codes(b: ir.IRBuilder, scaled: ir.Value) -> ir.Value:
    kind = F32x16.llvm
    rounded = llvm_call(b, "llvm.nearbyint.v16f32", kind, scaled)
    rounded = llvm_call(b, "llvm.minnum.v16f32", kind, rounded, kind([127.0] * 16))
    rounded = llvm_call(b, "llvm.maxnum.v16f32", kind, rounded, kind([-127.0] * 16))
    rounded = b.select(b.fcmp_unordered("uno", scaled, scaled), kind(None), rounded)
    return b.trunc(b.fptosi(rounded, I32x16.llvm), U8x16.llvm)


def _is_outlier(b: ir.IRBuilder, magnitude: ir.Value, threshold: ir.Value) -> ir.Value:
    """Per lane, with float32 bits as integers: from the threshold on, and no NaN."""
    least = splat(b, b.trunc(threshold, I32), 16)
    large = b.icmp_signed(">=", magnitude, least)
    return b.and_(large, b.icmp_signed("<=", magnitude, magnitude.type([0x7F800000] * 16)))


def _inliers(b: ir.IRBuilder, magnitude: ir.Value, threshold: ir.Value) -> ir.Value:
    return b.select(_is_outlier(b, magnitude, threshold), magnitude.type(None), magnitude)


def _outliers(b: ir.IRBuilder, magnitude: ir.Value, threshold: ir.Value) -> ir.Value:
    return b.zext(b.bitcast(_is_outlier(b, magnitude, threshold), I16), I64)


def _load_codes(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return b.sitofp(b.load(at(b, address, U8x16.llvm), align=1), F32x16.llvm)


codes_of = word(1, U8x16, _codes)
"""Scaled values as int8: rounded to even, within -127 to 127, 0 for NaN."""
inliers = word(2, I32x16, _inliers)
"""(magnitudes, bits of the threshold): magnitudes, with 0 in place of outliers."""
outliers = word(2, types.int64, _outliers)
"""(magnitudes, bits of the threshold): a bit for each lane that is an outlier."""
shifted = word(1, U8x16, lambda b, v: b.xor(v, v.type([128] * 16)))
"""int8 as uint8, each 128 more."""
ones_u8x16 = word(1, U8x16, lambda b, _: U8x16.llvm([1] * 16))
load_i8 = word(1, types.int8, lambda b, address: b.load(at(b, address, I8), align=1))
load_i32 = word(1, types.int32, lambda b, address: b.load(at(b, address, I32), align=1))
load_i64 = word(1, types.int64, lambda b, address: b.load(at(b, address, I64), align=1))
load_codes = word(1, F32x16, _load_codes)
"""(address): 16 int8 as float32."""
to_f32 = word(1, F32x16, lambda b, v: b.sitofp(v, F32x16.llvm))
