"""Words for the optimizer kernels, beside those of `simd.py`, and the rules written in them.

Only kernels import this module: it needs numba.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.core import types

from bitsanywhere.backends.cpu import simd
from bitsanywhere.backends.cpu.decode import inline
from bitsanywhere.backends.cpu.optimizer_numbers import PLACES
from bitsanywhere.backends.cpu.simd import FLOAT, I8, I32, I64, F32x16, I32x16, at, llvm_call, word

BUFFER_BYTES = 8192
_I1x16 = ir.VectorType(ir.IntType(1), 16)


def _buffer(b: ir.IRBuilder, _: ir.Value) -> ir.Value:
    return simd.stack(b, BUFFER_BYTES)


def _constant(b: ir.IRBuilder, numbers: ir.Value, offset: ir.Value) -> ir.Value:
    value = b.load(at(b, b.add(numbers, offset), FLOAT), align=4)
    return simd.splat(b, value, 16)


def _moves(b: ir.IRBuilder, g: ir.Value, least: ir.Value) -> ir.Value:
    size = b.bitcast(b.and_(b.bitcast(g, I32x16.llvm), I32x16.llvm([0x7FFFFFFF] * 16)), g.type)
    finite = b.fcmp_ordered("<", size, g.type([math.inf] * 16))
    return b.sext(b.and_(finite, b.fcmp_ordered(">=", size, least)), I32x16.llvm)


def _choose(b: ir.IRBuilder, mask: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
    return b.select(b.trunc(mask, _I1x16), yes, no)


def _sign(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    zero, one, minus = (v.type([x] * 16) for x in (0.0, 1.0, -1.0))
    negative = b.select(b.fcmp_ordered("<", v, zero), minus, zero)
    return b.select(b.fcmp_ordered(">", v, zero), one, negative)


def _values_of(b: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
    first, out = at(b, table, FLOAT), F32x16.llvm(ir.Undefined)
    for lane in range(16):
        code = b.load(at(b, b.add(codes, I64(lane)), I8), align=1)
        value = b.load(b.gep(first, [b.zext(code, I64)]), align=4)
        out = b.insert_element(out, value, I32(lane))
    return out


def _look_up(b: ir.IRBuilder, to: ir.Value, table: ir.Value, points: ir.Value) -> None:
    first = at(b, table, I8)
    for lane in range(16):
        point = b.load(at(b, b.add(points, I64(4 * lane)), I32), align=4)
        code = b.load(b.gep(first, [b.zext(point, I64)]), align=1)
        b.store(code, at(b, b.add(to, I64(lane)), I8), align=1)


load_i64 = word(1, types.int64, lambda b, p: b.load(at(b, p, I64), align=8))
values_of = word(2, F32x16, _values_of)
"""(table of float32, address of 16 uint8 codes) -> their values."""
look_up = word(3, types.void, _look_up)
"""(address, table of uint8, address of 16 int32 indices): stores the 16 bytes found."""
buffer = word(1, types.int64, _buffer)
"""8192 bytes on the stack."""
constant = word(2, F32x16, _constant)
"""(numbers, byte offset): a float32 of memory in each lane."""
div = word(2, F32x16, lambda b, x, y: b.fdiv(x, y))
sqrt = word(1, F32x16, lambda b, v: llvm_call(b, "llvm.sqrt.v16f32", v.type, v))
moves = word(2, I32x16, _moves)
"""(g, least): lanes whose gradient is finite and at least that large; -1, else 0."""
choose = word(3, lambda mask, yes, no: yes, _choose)
sign = word(1, F32x16, _sign)


def rule(name: str) -> Any:
    """The rule of `ops.optimizer_rules`: function (g, a, b, c, numbers) -> (update, a, b, c) of
    vectors; a and c are the first and second state, b is the slow average of ademamix."""
    mul, add, fma = simd.mul, simd.add, simd.fma
    b1, rest1, b2, rest2 = (PLACES[k] for k in ("beta1", "rest1", "beta2", "rest2"))
    b3, rest3, alpha, eps = (PLACES[k] for k in ("beta3", "rest3", "alpha", "eps"))
    fast, root = PLACES["fast"], PLACES["root"]

    @inline
    def mix(old, new, k, beta, rest):
        return fma(old, constant(k, beta), mul(new, constant(k, rest)))

    @inline
    def adam(g, a, b, c, k):
        a, c = mix(a, g, k, b1, rest1), mix(c, mul(g, g), k, b2, rest2)
        return div(a, add(sqrt(c), constant(k, eps))), a, b, c

    @inline
    def ademamix(g, a, b, c, k):
        a, b = mix(a, g, k, b1, rest1), mix(b, g, k, b3, rest3)
        c = mix(c, mul(g, g), k, b2, rest2)
        both = fma(a, constant(k, fast), mul(b, constant(k, alpha)))
        return div(both, fma(sqrt(c), constant(k, root), constant(k, eps))), a, b, c

    @inline
    def momentum(g, a, b, c, k):
        a = fma(a, constant(k, b1), g)
        return a, a, b, c

    @inline
    def rmsprop(g, a, b, c, k):
        a = mix(a, mul(g, g), k, b1, rest1)
        return div(g, add(sqrt(a), constant(k, eps))), a, b, c

    @inline
    def adagrad(g, a, b, c, k):
        a = fma(g, g, a)
        return div(g, add(sqrt(a), constant(k, eps))), a, b, c

    @inline
    def lion(g, a, b, c, k):
        return sign(mix(a, g, k, b1, rest1)), mix(a, g, k, b2, rest2), b, c

    found = {
        "adam": adam,
        "ademamix": ademamix,
        "momentum": momentum,
        "rmsprop": rmsprop,
        "adagrad": adagrad,
        "lion": lion,
    }
    return found[name]
