"""The inner loop of the matrix product: a small tile of dot products, all in registers.

Both operands lie in panels, see `panels.py`; a step is one vector position.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from bitsanywhere.backends.cpu.panels import TILES, VECTOR_BYTES, Tile
from bitsanywhere.backends.cpu.permute import dot_code
from bitsanywhere.backends.cpu.simd import FLOAT, I16, I64, at, llvm_call, shuffle

SUM_LANES = 8


def tile(level: str, bf16: bool) -> Any:
    """Word (a, b, steps, c, stride): adds the dot products of a panel of A with one of B to C.

    `a` and `b` are addresses of panels of `steps` steps; row r of the tile adds `SUM_LANES`
    float32 at ``c + r * stride``, those past `b_rows` being zero.
    """
    shape = TILES[level]

    @intrinsic
    def multiply(typingctx, a, b, steps, c, stride):
        def generate(context, builder, signature, values):
            _emit(builder, shape, bf16, *values)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return multiply


def _emit(
    b: ir.IRBuilder,
    shape: Tile,
    bf16: bool,
    a_panel: ir.Value,
    b_panel: ir.Value,
    steps: ir.Value,
    c: ir.Value,
    stride: ir.Value,
) -> None:
    kind = ir.VectorType(FLOAT, shape.lanes)
    before, body, after = b.block, b.append_basic_block("step"), b.append_basic_block("sums")
    b.branch(body)
    b.position_at_end(body)
    step = b.phi(I64)
    step.add_incoming(I64(0), before)
    sums = [[b.phi(kind) for _ in range(shape.b_rows)] for _ in range(shape.a_rows)]
    a_at = b.add(a_panel, b.mul(step, I64(shape.a_rows * VECTOR_BYTES)))
    b_at = b.add(b_panel, b.mul(step, I64(shape.b_rows * VECTOR_BYTES)))
    new = sums
    for offset in range(0, VECTOR_BYTES, shape.lanes * 4):
        xs = [_load(b, a_at, r, offset, shape.lanes, bf16) for r in range(shape.a_rows)]
        ys = [_load(b, b_at, r, offset, shape.lanes, bf16) for r in range(shape.b_rows)]
        new = [[_product(b, t, x, y, bf16) for t, y in zip(row, ys)] for row, x in zip(new, xs)]
    following = b.add(step, I64(1))
    step.add_incoming(following, body)
    for phis, results in zip(sums, new):
        for phi, result in zip(phis, results):
            phi.add_incoming(kind(None), before)
            phi.add_incoming(result, body)
    b.cbranch(b.icmp_signed("<", following, steps), body, after)
    b.position_at_end(after)
    for r, row in enumerate(new):
        totals = totals_code(b, [*row, *[kind(None)] * (SUM_LANES - len(row))])
        place = at(b, b.add(c, b.mul(stride, I64(r))), totals.type)
        b.store(b.fadd(b.load(place, align=4), totals), place, align=4)


def _load(
    b: ir.IRBuilder, base: ir.Value, row: int, offset: int, lanes: int, bf16: bool
) -> ir.Value:
    kind = ir.VectorType(I16, 2 * lanes) if bf16 else ir.VectorType(FLOAT, lanes)
    where = b.add(base, I64(row * VECTOR_BYTES + offset))
    return b.load(at(b, where, kind), align=4 * lanes)


def _product(b: ir.IRBuilder, t: ir.Value, x: ir.Value, y: ir.Value, bf16: bool) -> ir.Value:
    if bf16:
        return dot_code(b, t, x, y)
    return llvm_call(b, f"llvm.fmuladd.v{t.type.count}f32", t.type, x, y, t)


def totals_code(b: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """LLVM code for the sums of each vector's lanes, as one vector; a power of two of vectors."""
    lanes = vectors[0].type.count
    if len(vectors) > lanes:
        half = len(vectors) // 2
        low, high = totals_code(b, vectors[:half]), totals_code(b, vectors[half:])
        return shuffle(b, low, high, list(range(len(vectors))))
    segment = lanes
    while len(vectors) > 1:
        segment //= 2
        vectors = [_fold(b, x, y, segment) for x, y in zip(vectors[::2], vectors[1::2])]
    total = vectors[0]
    while segment > 1:
        count = total.type.count
        even = shuffle(b, total, total, list(range(0, count, 2)))
        total = b.fadd(even, shuffle(b, total, total, list(range(1, count, 2))))
        segment //= 2
    return total


def _fold(b: ir.IRBuilder, x: ir.Value, y: ir.Value, segment: int) -> ir.Value:
    """Halves each run of 2 * segment lanes by addition; the runs of x come first."""
    lanes = range(2 * x.type.count)
    first = shuffle(b, x, y, [i for i in lanes if i // segment % 2 == 0])
    return b.fadd(first, shuffle(b, x, y, [i for i in lanes if i // segment % 2 == 1]))
