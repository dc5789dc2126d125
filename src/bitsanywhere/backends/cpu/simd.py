"""Vectors in numba: the words the CPU kernels are written in.

A kernel handles addresses (int64) and vectors such as ``F32x16``; LLVM splits a vector wider than
the processor's registers by itself, so one kernel serves AVX-512, AVX2, NEON and machines without
vectors. Only the words in `permute.py` differ by processor.

Only kernels import this module: it needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()


class Vec(types.Type):
    """The numba type of an LLVM vector of ``lanes`` elements of LLVM type ``element``."""

    def __init__(self, element: ir.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=f"Vec({element} x {lanes})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


F32x16, I32x16, U8x16 = Vec(FLOAT, 16), Vec(I32, 16), Vec(I8, 16)
U16x16, U16x32 = Vec(I16, 16), Vec(I16, 32)


# --- LLVM code in pieces -----------------------------------------------------------------------


def at(b: ir.IRBuilder, address: ir.Value, pointee: ir.Type) -> ir.Value:
    """``address`` (i64) as a pointer to ``pointee``."""
    return b.inttoptr(address, pointee.as_pointer())


def splat(b: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """A vector with ``scalar`` in each lane."""
    one = b.insert_element(ir.VectorType(scalar.type, lanes)(ir.Undefined), scalar, I32(0))
    return shuffle(b, one, one, [0] * lanes)


def shuffle(b: ir.IRBuilder, low: ir.Value, high: ir.Value, order: list[int]) -> ir.Value:
    """Lanes of ``low`` followed by ``high``, picked by a constant ``order``."""
    return b.shuffle_vector(low, high, ir.VectorType(I32, len(order))(order))


def llvm_call(b: ir.IRBuilder, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """A call of the LLVM intrinsic ``name``."""
    signature = ir.FunctionType(result, [operand.type for operand in operands])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), operands)


def concat(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """One vector with the lanes of both."""
    return shuffle(b, low, high, list(range(2 * low.type.count)))


def part(b: ir.IRBuilder, v: ir.Value, start: int, lanes: int) -> ir.Value:
    """``lanes`` lanes of ``v`` from ``start`` on."""
    return shuffle(b, v, v, list(range(start, start + lanes)))


# --- words -------------------------------------------------------------------------------------


def word(arguments: int, result: Any, emit: Callable[..., ir.Value | None]) -> Any:
    """A numba intrinsic.

    Args:
        arguments: how many it takes, 1 to 3.
        result: its numba type, or a function from the argument types to it.
        emit: ``emit(builder, *values)`` that emits its LLVM code.
    """

    def typed(*args: Any) -> tuple[Any, Callable[..., Any]]:
        kind = result if isinstance(result, types.Type) else result(*args)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        return kind(*args), generate

    if arguments == 1:

        @intrinsic
        def one(typingctx, a):
            return typed(a)

        return one
    if arguments == 2:

        @intrinsic
        def two(typingctx, a, b):
            return typed(a, b)

        return two

    @intrinsic
    def three(typingctx, a, b, c):
        return typed(a, b, c)

    return three


def _loader(kind: Vec) -> Any:
    return word(1, kind, lambda b, address: b.load(at(b, address, kind.llvm), align=1))


def _scalar_loader(kind: types.Type, llvm: ir.Type) -> Any:
    return word(1, kind, lambda b, address: b.load(at(b, address, llvm), align=1))


def _bits(b: ir.IRBuilder, v: ir.Value, amount: ir.Value) -> ir.Value:
    """The integer scalar ``amount`` in each lane, in the element type of ``v``."""
    width = v.type.element.width
    return splat(b, b.trunc(amount, ir.IntType(width)) if width < 64 else amount, v.type.count)


def _same(a: types.Type, *rest: types.Type) -> types.Type:
    return a


def _binary(operation: str) -> Any:
    return word(2, _same, lambda b, x, y: getattr(b, operation)(x, y))


def _by_constant(operation: str) -> Any:
    return word(2, _same, lambda b, v, n: getattr(b, operation)(v, _bits(b, v, n)))


def _sum(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    name = f"llvm.vector.reduce.fadd.v{v.type.count}f32"
    signature = ir.FunctionType(FLOAT, [FLOAT, v.type])
    function = cgutils.get_or_insert_function(b.module, signature, name)
    return b.call(function, [FLOAT(-0.0), v], fastmath=("reassoc",))


def stack(b: ir.IRBuilder, size: int) -> ir.Value:
    """Address of so many bytes on the stack, at a multiple of 64.

    They hold anything. numba's own `alloca_once` clears them, byte by byte for LLVM, which then
    compiles for seconds.
    """
    with b.goto_entry_block():
        kept = b.alloca(ir.ArrayType(I8, size))
    kept.align = 64
    return b.ptrtoint(kept, I64)


def _scratch(b: ir.IRBuilder, _: ir.Value) -> ir.Value:
    return stack(b, SCRATCH_BYTES)


def prefetch_code(b: ir.IRBuilder, address: ir.Value, locality: int = 3) -> None:
    """LLVM code that asks for a cache line; any address will do.

    Args:
        locality: 3 for every cache, 2 for all but the first level.
    """
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(b.module, signature, "llvm.prefetch.p0")
    # For reading, of data.
    b.call(function, [at(b, address, I8), I32(0), I32(locality), I32(1)])


SCRATCH_BYTES = 512

# Memory. Addresses are int64; nothing need be aligned.
load_f32x16, load_u16x32 = _loader(F32x16), _loader(U16x32)
load_u8x16, load_i32x16 = _loader(U8x16), _loader(I32x16)
load_f32 = _scalar_loader(types.float32, FLOAT)
load_u8, load_u16 = _scalar_loader(types.uint8, I8), _scalar_loader(types.uint16, I16)
store = word(2, types.void, lambda b, p, v: b.store(v, at(b, p, v.type), align=1) and None)
address_of = word(1, types.int64, lambda b, pointer: b.ptrtoint(pointer, I64))
take = word(2, types.int64, lambda b, p, n: b.atomic_rmw("add", at(b, p, I64), n, "monotonic"))
scratch = word(1, types.int64, _scratch)
prefetch = word(1, types.void, prefetch_code)
"""(address): asks for its cache line; any address will do."""

# float32
splat_f32x16 = word(1, F32x16, lambda b, x: splat(b, x, 16))
zeros_f32x16 = word(1, F32x16, lambda b, _: F32x16.llvm(None))
mul, add = _binary("fmul"), _binary("fadd")
fma = word(3, _same, lambda b, x, y, z: llvm_call(b, "llvm.fmuladd.v16f32", z.type, x, y, z))
sum_lanes = word(1, types.float32, _sum)

# Integers; the second operand of the first two is a scalar.
shr, keep = _by_constant("lshr"), _by_constant("and_")
least = word(2, types.int64, lambda b, x, y: b.select(b.icmp_signed("<", x, y), x, y))


# Conversions. Rounding is to nearest even; a NaN stays one.


def _to_bf16(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    count = v.type.count
    kind = ir.VectorType(I32, count)
    bits = b.bitcast(v, kind)
    odd = b.and_(b.lshr(bits, kind([16] * count)), kind([1] * count))
    rounded = b.add(b.add(bits, odd), kind([0x7FFF] * count))
    rounded = b.select(b.fcmp_unordered("uno", v, v), kind([0x7FC00000] * count), rounded)
    return b.trunc(b.lshr(rounded, kind([16] * count)), ir.VectorType(I16, count))


def _from_bf16(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    count = v.type.count
    wide = b.zext(v, ir.VectorType(I32, count))
    return b.bitcast(b.shl(wide, wide.type([16] * count)), ir.VectorType(FLOAT, count))


def _to_f16(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    half = b.fptrunc(v, ir.VectorType(HALF, v.type.count))
    return b.bitcast(half, ir.VectorType(I16, v.type.count))


def _from_f16(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    half = b.bitcast(v, ir.VectorType(HALF, v.type.count))
    return b.fpext(half, ir.VectorType(FLOAT, v.type.count))


_FLOATS = {
    "float32": (FLOAT, lambda b, v: v, lambda b, v: v),
    "bfloat16": (I16, _from_bf16, _to_bf16),
    "float16": (I16, _from_f16, _to_f16),
}
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def rounding_code(dtype: str) -> Callable[[ir.IRBuilder, ir.Value], ir.Value]:
    """The LLVM code that rounds a float32 vector to `dtype`."""
    return _FLOATS[dtype][2]


def reader(dtype: str) -> Any:
    """Word (address) -> F32x16 that loads 16 elements of `dtype`."""
    element, widen, _ = _FLOATS[dtype]
    kind = ir.VectorType(element, 16)
    return word(1, F32x16, lambda b, p: widen(b, b.load(at(b, p, kind), align=1)))


def writer(dtype: str) -> Any:
    """Word (address, F32x16) that stores 16 elements rounded to `dtype`."""
    narrow = _FLOATS[dtype][2]

    def emit(b: ir.IRBuilder, address: ir.Value, v: ir.Value) -> None:
        value = narrow(b, v)
        b.store(value, at(b, address, value.type), align=1)

    return word(2, types.void, emit)


def scalar_reader(dtype: str) -> Any:
    """Word (address) -> float32 that loads one element of `dtype`."""
    element, widen, _ = _FLOATS[dtype]
    kind = ir.VectorType(element, 1)

    def emit(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
        return b.extract_element(widen(b, b.load(at(b, address, kind), align=1)), I32(0))

    return word(1, types.float32, emit)


def scalar_writer(dtype: str) -> Any:
    """Word (address, float32) that stores one element rounded to `dtype`."""
    narrow = _FLOATS[dtype][2]

    def emit(b: ir.IRBuilder, address: ir.Value, x: ir.Value) -> None:
        value = narrow(b, splat(b, x, 1))
        b.store(value, at(b, address, value.type), align=1)

    return word(2, types.void, emit)


# Packed 4-bit codes, two a byte, the earlier element in the high half.


def bytes_to_pairs_code(b: ir.IRBuilder, packed: ir.Value) -> ir.Value:
    """16 packed bytes as 32 codes of 16 bits, in their order."""
    wide = b.zext(packed, I32x16.llvm)
    early = b.lshr(wide, wide.type([4] * 16))
    late = b.shl(b.and_(wide, wide.type([15] * 16)), wide.type([16] * 16))
    return b.bitcast(b.or_(early, late), U16x32.llvm)


def _pack_codes(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    early = shuffle(b, first, second, list(range(0, 32, 2)))
    late = shuffle(b, first, second, list(range(1, 32, 2)))
    return b.trunc(b.or_(b.shl(early, early.type([4] * 16)), late), U8x16.llvm)


def _lanes(order: list[int]) -> Any:
    return word(2, _same, lambda b, x, y: shuffle(b, x, y, order))


pack_codes = word(2, U8x16, _pack_codes)
"""Two I32x16 of codes, elements 0-15 and 16-31, as 16 packed bytes."""
evens, odds = _lanes(list(range(0, 32, 2))), _lanes(list(range(1, 32, 2)))
widen32 = word(1, I32x16, lambda b, v: b.zext(v, I32x16.llvm))

# Largest absolute value: float32 bits without the sign order as integers, NaN last.


def _magnitude(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.and_(b.bitcast(v, I32x16.llvm), I32x16.llvm([0x7FFFFFFF] * 16))


def _larger(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed(">", x, y), x, y)


def _largest(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.bitcast(llvm_call(b, "llvm.vector.reduce.smax.v16i32", I32, v), FLOAT)


magnitude = word(1, I32x16, _magnitude)
larger = word(2, I32x16, _larger)
largest = word(1, types.float32, _largest)
zeros_i32x16 = word(1, I32x16, lambda b, _: I32x16.llvm(None))


def _deal(b: ir.IRBuilder, address: ir.Value, stride: ir.Value, source: ir.Value) -> None:
    kind = ir.VectorType(I16, 128)
    v = b.load(at(b, source, kind), align=1)
    # A word of packed bytes holds, from its low bits up, elements 1, 0, 3, 2 of four.
    for j, element in enumerate((1, 0, 3, 2)):
        lanes = shuffle(b, v, v, list(range(element, 128, 4)))
        place = b.add(address, b.mul(stride, I64(j)))
        b.store(lanes, at(b, place, lanes.type), align=64)


deal_words = word(3, types.void, _deal)
"""(address, stride, source): 128 elements of 16 bits as four vectors, see `panels.py`."""


def grid_code(b: ir.IRBuilder, s: ir.Value) -> ir.Value:
    """LLVM code for the grid point of scaled values, as float32 yet to be rounded towards zero."""
    kind = s.type
    scaled = b.fmul(b.fadd(s, kind([1.0] * 16)), kind([32767.5] * 16))
    grid = b.fadd(scaled, kind([0.5] * 16))
    # maxnum turns NaN into 0.
    grid = llvm_call(b, "llvm.maxnum.v16f32", kind, grid, kind([0.0] * 16))
    return llvm_call(b, "llvm.minnum.v16f32", kind, grid, kind([65535.0] * 16))


def _grid_point(b: ir.IRBuilder, s: ir.Value) -> ir.Value:
    point = b.fptosi(grid_code(b, s), I32x16.llvm)
    is_zero = b.fcmp_ordered("oeq", s, s.type([0.0] * 16))
    return b.select(is_zero, point.type([65536] * 16), point)


def _gather(element: ir.Type) -> Callable[..., ir.Value]:
    def emit(b: ir.IRBuilder, base: ir.Value, index: ir.Value) -> ir.Value:
        first = at(b, base, element)
        out = ir.VectorType(element, 16)(ir.Undefined)
        for lane in range(16):
            where = b.zext(b.extract_element(index, I32(lane)), I64)
            out = b.insert_element(out, b.load(b.gep(first, [where])), I32(lane))
        return out

    return emit


grid_point = word(1, I32x16, _grid_point)
"""Index of a scaled value in the 65536-point grid of `formats.base`; 65536 for zero, 0 for NaN."""
gather_u8x16 = word(2, U8x16, _gather(I8))
gather_f32x16 = word(2, F32x16, _gather(FLOAT))
