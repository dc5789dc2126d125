"""The words that differ by processor: lookup in 16 entries, and the bfloat16 dot product.

Each is a function of a `Machine` level that returns a numba intrinsic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from bitsanywhere.backends.cpu.simd import (
    FLOAT,
    I8,
    I16,
    I32,
    SIZE,
    F32x16,
    I32x16,
    U16x16,
    U16x32,
    at,
    bytes_to_pairs_code,
    concat,
    llvm_call,
    part,
    rounding_code,
    shuffle,
    splat,
    word,
)


def lookup_f32(level: str) -> Any:
    """Word (F32x16 table, I32x16 index) -> F32x16 with ``table[index]``; 0 <= index < 16."""
    return word(2, F32x16, _pick(level, _avx512_f32, _avx2_f32, _neon_f32))


def unpack16(level: str, dtype: str) -> tuple[Any, Any]:
    """Words that write 16 packed bytes as 32 elements of `dtype`.

    Returns:
        (F32x16 scaled codebook) -> table, and (address, table, U8x16) that stores 32 elements.
    """
    if SIZE[dtype] == 4:
        find = _pick(level, _avx512_f32, _avx2_f32, _neon_f32)

        def store_wide(b: ir.IRBuilder, address: ir.Value, table: ir.Value, v: ir.Value) -> None:
            codes = b.zext(v, I32x16.llvm)
            even = find(b, table, b.lshr(codes, codes.type([4] * 16)))
            odd = find(b, table, b.and_(codes, codes.type([15] * 16)))
            both = shuffle(b, even, odd, [lane for i in range(16) for lane in (i, 16 + i)])
            b.store(both, at(b, address, both.type), align=1)

        return word(1, F32x16, lambda b, v: v), word(3, types.void, store_wide)
    look = _pick(level, _avx512_u16, _avx2_u16, _neon_u16)
    narrow = rounding_code(dtype)

    def store_narrow(b: ir.IRBuilder, address: ir.Value, table: ir.Value, v: ir.Value) -> None:
        found = look(b, table, bytes_to_pairs_code(b, v))
        b.store(found, at(b, address, found.type), align=1)

    return word(1, U16x16, narrow), word(3, types.void, store_narrow)


def interval(level: str) -> Any:
    """Word (F32x16 thresholds, F32x16 s) -> I32x16: how many of 15 ascending thresholds are not at
    or above ``s``; 15 for NaN. The 16th entry is not looked at."""
    lookup = _pick(level, _avx512_f32, None, None)
    return word(2, I32x16, _counting if lookup in (None, _from_memory) else _searching(lookup))


def _counting(b: ir.IRBuilder, thresholds: ir.Value, s: ir.Value) -> ir.Value:
    count = I32x16.llvm(None)
    for i in range(15):
        above = b.fcmp_unordered("ugt", s, splat(b, b.extract_element(thresholds, I32(i)), 16))
        count = b.sub(count, b.sext(above, I32x16.llvm))
    return count


def _searching(lookup: Callable[..., ir.Value]) -> Callable[..., ir.Value]:
    def emit(b: ir.IRBuilder, thresholds: ir.Value, s: ir.Value) -> ir.Value:
        found = I32x16.llvm(None)
        for step in (8, 4, 2, 1):
            middle = shuffle(b, thresholds, thresholds, [min(i + step - 1, 15) for i in range(16)])
            above = b.fcmp_unordered("ugt", s, lookup(b, middle, found))
            further = b.or_(found, found.type([step] * 16))
            found = b.select(above, further, found)
        return found

    return emit


def lookup_i32(level: str) -> Any:
    """As `lookup_f32` for a table of int32."""
    pick = _pick(level, _avx512_f32, _avx2_f32, _neon_f32)

    def emit(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
        return b.bitcast(pick(b, b.bitcast(table, F32x16.llvm), index), I32x16.llvm)

    return word(2, I32x16, emit)


def _pick(level: str, avx512: Any, avx2: Any, neon: Any) -> Callable[..., ir.Value]:
    emitters = {"avx512_bf16": avx512, "avx512": avx512, "avx2": avx2, "neon": neon}
    return emitters.get(level, _from_memory)


def _avx512_f32(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    return llvm_call(b, "llvm.x86.avx512.permvar.sf.512", F32x16.llvm, table, index)


def _avx2_f32(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    kind, halves = ir.VectorType(FLOAT, 8), []
    for start in (0, 8):
        lanes = part(b, index, start, 8)
        low = llvm_call(b, "llvm.x86.avx2.permps", kind, part(b, table, 0, 8), lanes)
        high = llvm_call(b, "llvm.x86.avx2.permps", kind, part(b, table, 8, 8), lanes)
        # Bit 3 chooses; as the sign bit it is what vblendvps looks at.
        sign = b.shl(lanes, lanes.type([28] * 8))
        halves.append(b.select(b.icmp_signed("<", sign, lanes.type([0] * 8)), high, low))
    return concat(b, *halves)


def octet_code(level: str) -> Callable[..., ir.Value]:
    """LLVM code that looks up eight float32: (builder, F32x16 that holds them twice, I32x16) ->
    F32x16. The lowest three bits of an index count, whatever is above them."""
    return _pick(level, _avx512_f32, _avx2_octet, _neon_octet)


def _avx2_octet(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    kind, eight = ir.VectorType(FLOAT, 8), part(b, table, 0, 8)
    low, high = part(b, index, 0, 8), part(b, index, 8, 8)
    found = (llvm_call(b, "llvm.x86.avx2.permps", kind, eight, lanes) for lanes in (low, high))
    return concat(b, *found)


def _neon_octet(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    return _neon_f32(b, table, b.and_(index, index.type([7] * 16)))


def _neon_f32(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    kind = ir.VectorType(I8, 16)
    rows = [b.bitcast(part(b, table, start, 4), kind) for start in (0, 4, 8, 12)]
    # Byte j of lane i is byte 4 * index[i] + j of the table.
    scaled = b.mul(index, index.type([0x04040404] * 16))
    where = b.add(scaled, index.type([0x03020100] * 16))
    found = [
        llvm_call(
            b,
            "llvm.aarch64.neon.tbl4.v16i8",
            kind,
            *rows,
            b.bitcast(part(b, where, start, 4), kind),
        )
        for start in (0, 4, 8, 12)
    ]
    quads = [b.bitcast(one, ir.VectorType(FLOAT, 4)) for one in found]
    return concat(b, concat(b, *quads[:2]), concat(b, *quads[2:]))


def _avx512_u16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    return llvm_call(
        b, "llvm.x86.avx512.permvar.hi.512", U16x32.llvm, concat(b, table, table), index
    )


def _avx2_u16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    bytes32, halves = ir.VectorType(I8, 32), []
    flat = b.bitcast(table, bytes32)
    low = shuffle(b, flat, flat, list(range(0, 32, 2)) * 2)
    high = shuffle(b, flat, flat, list(range(1, 32, 2)) * 2)
    for start in (0, 16):
        lanes = part(b, index, start, 16)
        # An index byte with its top bit set yields zero.
        first = b.or_(lanes, lanes.type([0x8000] * 16))
        second = b.or_(b.shl(lanes, lanes.type([8] * 16)), lanes.type([0x80] * 16))
        found = [
            llvm_call(b, "llvm.x86.avx2.pshuf.b", bytes32, half, b.bitcast(where, bytes32))
            for half, where in ((low, first), (high, second))
        ]
        halves.append(b.bitcast(b.or_(*found), ir.VectorType(I16, 16)))
    return concat(b, *halves)


def _neon_u16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    kind = ir.VectorType(I8, 16)
    rows = [b.bitcast(part(b, table, start, 8), kind) for start in (0, 8)]
    scaled = b.mul(index, index.type([0x0202] * 32))
    where = b.add(scaled, index.type([0x0100] * 32))
    found = [
        llvm_call(
            b,
            "llvm.aarch64.neon.tbl2.v16i8",
            kind,
            *rows,
            b.bitcast(part(b, where, start, 8), kind),
        )
        for start in (0, 8, 16, 24)
    ]
    eights = [b.bitcast(one, ir.VectorType(I16, 8)) for one in found]
    return concat(b, concat(b, *eights[:2]), concat(b, *eights[2:]))


def _from_memory(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    place = cgutils.alloca_once(b, table.type)
    b.store(table, place)
    first = b.bitcast(place, table.type.element.as_pointer())
    out = ir.VectorType(table.type.element, index.type.count)(ir.Undefined)
    for lane in range(index.type.count):
        where = b.zext(b.extract_element(index, I32(lane)), ir.IntType(64))
        out = b.insert_element(out, b.load(b.gep(first, [where])), I32(lane))
    return out


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite's IR layer does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BF16 = ir.VectorType(_BFloat(), 32)


def dot_code(b: ir.IRBuilder, total: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """LLVM code that adds the products of bfloat16 pairs to 16 float32 sums."""
    pairs = (b.bitcast(x, _BF16), b.bitcast(y, _BF16))
    return llvm_call(b, "llvm.x86.avx512bf16.dpbf16ps.512", F32x16.llvm, total, *pairs)


def _narrow_pair(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    narrow = llvm_call(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _BF16, high, low)
    return b.bitcast(narrow, U16x32.llvm)


def _lookup_pair(b: ir.IRBuilder, tables: ir.Value, index: ir.Value) -> ir.Value:
    return llvm_call(b, "llvm.x86.avx512.permvar.hi.512", U16x32.llvm, tables, index)


def _lookup_four(b: ir.IRBuilder, low: ir.Value, index: ir.Value, high: ir.Value) -> ir.Value:
    return llvm_call(b, "llvm.x86.avx512.vpermi2var.hi.512", U16x32.llvm, low, index, high)


def _nibble(tables: int) -> Callable[..., ir.Value]:
    def emit(b: ir.IRBuilder, v: ir.Value, start: ir.Value) -> ir.Value:
        shifted = b.lshr(v, splat(b, b.trunc(start, I16), 32))
        table = v.type([16 * (lane * tables // 32) for lane in range(32)])
        return b.or_(b.and_(shifted, v.type([15] * 32)), table)

    return emit


# AVX512-BF16 only.
narrow_pair = word(2, U16x32, _narrow_pair)
"""Two F32x16 as one vector of bfloat16, subnormals flushed to zero."""
lookup_pair = word(2, U16x32, _lookup_pair)
"""(two tables of 16, index below 32)."""
lookup_four = word(3, U16x32, _lookup_four)
"""(two tables, index below 64, two more tables)."""
nibble_in_half = word(2, U16x32, _nibble(2))
"""Bits start to start+3 of each of 32 words, plus 16 in the upper half of the words."""
nibble_in_quarter = word(2, U16x32, _nibble(4))
"""As `nibble_in_half`, plus 0, 16, 32 or 48 by the quarter."""
