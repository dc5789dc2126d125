"""Dot products of a few rows of weights with a few rows of activations, sums in registers.

The words here work on a tuple of sums, `WEIGHT_ROWS` for each row of activations.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from bitsanywhere.backends.cpu.panels import VECTOR_BYTES, WEIGHT_ROWS
from bitsanywhere.backends.cpu.permute import dot_code
from bitsanywhere.backends.cpu.simd import I64, F32x16, U16x32, at, llvm_call
from bitsanywhere.backends.cpu.tile import totals_code


def words(bf16: bool, height: int) -> tuple[Any, Any, Any]:
    """The words for `height` rows of activations, whose vectors lie side by side.

    Returns:
        function (0) -> sums, all zero; function (sums, tuple of one vector of each weight row,
        address of the activations' vectors) -> sums; function (address, sums) that stores each
        sum's total as float32.
    """
    count = WEIGHT_ROWS * height
    sums = types.UniTuple(F32x16, count)
    kind = U16x32 if bf16 else F32x16
    weights = types.UniTuple(kind, WEIGHT_ROWS)

    @intrinsic
    def zeros(typingctx, _):
        def generate(context, builder, signature, values):
            return cgutils.pack_array(builder, [F32x16.llvm(None)] * count)

        return sums(_), generate

    @intrinsic
    def multiply(typingctx, totals, vectors, address):
        def generate(context, b, signature, values):
            totals, vectors, address = values
            found = cgutils.unpack_tuple(b, totals, count)
            ws = cgutils.unpack_tuple(b, vectors, WEIGHT_ROWS)
            for r in range(height):
                place = b.add(address, I64(r * VECTOR_BYTES))
                x = b.load(at(b, place, kind.llvm), align=1)
                for w, vector in enumerate(ws):
                    i = r * WEIGHT_ROWS + w
                    found[i] = _product(b, found[i], vector, x, bf16)
            return cgutils.pack_array(b, found)

        return sums(sums, weights, types.int64), generate

    @intrinsic
    def store(typingctx, address, totals):
        def generate(context, b, signature, values):
            address, totals = values
            result = totals_code(b, cgutils.unpack_tuple(b, totals, count))
            b.store(result, at(b, address, result.type), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, sums), generate

    return zeros, multiply, store


def _product(b: ir.IRBuilder, t: ir.Value, w: ir.Value, x: ir.Value, bf16: bool) -> ir.Value:
    if bf16:
        return dot_code(b, t, w, x)
    return llvm_call(b, "llvm.fmuladd.v16f32", t.type, w, x, t)
