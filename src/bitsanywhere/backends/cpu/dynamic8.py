"""Codes of the dynamic map by arithmetic in vectors; `formats.base` has the rule.

Only kernels import this module: it needs numba.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from bitsanywhere.backends.cpu import permute
from bitsanywhere.backends.cpu.simd import F32x16, I32x16, U8x16, grid_code, llvm_call, word

_DECADES = (2, 2, 3, 3, 4, 5, 5, 6)
# Where decade e begins, by the group it begins in.
_BEGINS = {1: 3, 3: 4, 4: 5, 6: 6}
_END = 7
_DENSITY = {True: 1, False: 2}


def segments(signed: bool) -> tuple[list[float], ...]:
    """The tables that `encoder` looks up, by group: thresholds, slopes, offsets and caps.

    Let ``u = |4 k - 131070|`` for grid point k, which is 131070 times the magnitude it stands for.
    A value in decade e, from ``10 ** (e - 7)`` to ten times that, has the codes that begin with
    ``n = 2 ** e`` (signed) or ``2 ** (e + 1) - 1`` (unsigned) counted from that of zero. They are
    midpoints of equal intervals, hence the code is the floor of a line in u. Only the last value
    of a decade lies further from its successor: its interval reaches into the next decade, so the
    line is capped below n of that one, which starts at the midpoint of the two values.

    The smallest u is 2, so decades 0 and 1 are never met, and each group of two exponents, which
    are bits 24 to 26 of the float32 u, has at most one threshold, where the next group's line takes
    over. After the seventh group comes the first again: its line has no cap, and for a u that large
    it yields more than any code, which becomes 255, the code of 1.
    """
    q = _DENSITY[signed]
    thresholds = [math.inf] * 8
    for group, e in _BEGINS.items():
        thresholds[group] = 131070 * 10 ** (e - 7) * (1 + 1.8 / (q * 2**e))
    thresholds[_END] = 131070 * (1 - 0.225 / (q * 64))
    slopes = [q * 2**e * 10 ** (6 - e) / 0.9 / 131070 for e in _DECADES]
    offsets = [q * 2**e * 8 / 9 - (q - 1) for e in _DECADES]
    caps = [q * 2 ** (e + 1) - (q - 1) - 0.5 for e in _DECADES]
    caps[0] = caps[_END] = math.inf
    return thresholds, slopes, offsets, caps


def encoder(level: str, signed: bool) -> Any:
    """Word (F32x16 of scaled values) -> U8x16: their codes in `create_dynamic_map(signed)`, the
    same as those of `formats.grid_codes` and `formats.zero_code`."""
    find = permute.octet_code(level)
    thresholds, slopes, offsets, caps = (F32x16.llvm(row * 2) for row in segments(signed))
    zero_code = 127 if signed else 0

    def emit(b: ir.IRBuilder, s: ir.Value) -> ir.Value:
        ints, floats = I32x16.llvm, F32x16.llvm
        point = llvm_call(b, "llvm.trunc.v16f32", floats, grid_code(b, s))
        times, shift = floats([4.0] * 16), floats([-131070.0] * 16)
        bits = b.bitcast(llvm_call(b, "llvm.fmuladd.v16f32", floats, point, times, shift), ints)
        sign = b.and_(bits, ints([-(2**31)] * 16))
        size = b.xor(bits, sign)
        u, group = b.bitcast(size, floats), b.lshr(size, ints([24] * 16))
        beyond = b.fcmp_ordered(">", u, find(b, thresholds, group))
        line = b.sub(group, b.sext(beyond, ints))
        slope, offset = find(b, slopes, line), find(b, offsets, line)
        steps, cap = (
            llvm_call(b, "llvm.fmuladd.v16f32", floats, slope, u, offset),
            find(b, caps, line),
        )
        steps = b.select(b.fcmp_ordered("<", steps, cap), steps, cap)
        toward = b.bitcast(b.or_(b.bitcast(steps, ints), sign), floats)
        toward = b.select(b.fcmp_ordered("==", s, floats(None)), floats(None), toward)
        code = b.add(b.fptosi(toward, ints), ints([zero_code] * 16))
        code = llvm_call(b, "llvm.smax.v16i32", ints, code, ints(None))
        code = llvm_call(b, "llvm.smin.v16i32", ints, code, ints([255] * 16))
        return b.trunc(code, U8x16.llvm)

    return word(1, U8x16, emit)
