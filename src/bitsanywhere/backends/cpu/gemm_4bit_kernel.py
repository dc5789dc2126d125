"""Device code of the 4-bit product with several rows of activations.

A task is a few tiles' width of weight rows. Along K it goes in chunks: a chunk of a tile's weight
rows is decoded once, into a panel that stays in the first-level cache, and multiplied with all
activations, whose chunk stays in the second-level one.
"""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, simd
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.backends.cpu.panels import BF16, F32, TILES
from bitsanywhere.backends.cpu.tile import SUM_LANES, tile


def build(machine: Machine, dtype: str, bf16: bool, fine: bool) -> Any:
    """The kernel for results of `dtype`; `bf16` and `fine` as in `gemv_4bit_kernel`.

    Its arguments: task counter; scratch counter; packed activations (`pack_rows_kernel`); packed
    weight; absmax, absmax_8bit or 0, absmax_code, absmax_offset; codebook of 16 float32; bias or 0;
    out; N; K, a multiple of blocksize; log2 of blocksize; M; tiles a task; groups a chunk;
    scratch; its bytes for each thread.
    """
    order, shape = (BF16 if bf16 else F32), TILES[machine.level]
    a_rows, b_rows, vectors, group = shape.a_rows, shape.b_rows, order.vectors, order.group
    unpack_row = decode.bf16_row(fine, b_rows) if bf16 else decode.f32_row(machine.level, b_rows)
    multiply_tile, find_scales = tile(machine.level, bf16), decode.row_scales()
    finish = _finish(dtype)
    take, address_of, zeros = simd.take, simd.address_of, simd.zeros_f32x16
    store, load_f32x16, least = simd.store, simd.load_f32x16, simd.least

    def multiply(args):
        x, packed, absmax, codes, table, offset, values = (
            args[2], args[3], args[4], args[5], args[6], args[7], load_f32x16(args[8]),
        )  # fmt: skip
        bias, out, rows, k, shift, m = args[9], args[10], args[11], args[12], args[13], args[14]
        width, chunk = args[15] * b_rows, args[16]
        groups, blocks, panels = (k + group - 1) // group, k >> shift, (m + a_rows - 1) // a_rows
        stride = (width + SUM_LANES) * 4
        weights = args[17] + take(address_of(args) + 8, 1) * args[18]
        sums = weights + chunk * vectors * b_rows * 64
        spare = sums + ((panels * a_rows * stride + 63) >> 6 << 6)
        while True:
            first = take(address_of(args), 1) * width
            if first >= rows:
                return
            columns = least(width, rows - first)
            tiles = (columns + b_rows - 1) // b_rows
            for i in range(0, panels * a_rows * stride, 64):
                store(sums + i, zeros(0))
            for start in range(0, groups, chunk):
                count = least(chunk, groups - start)
                block0 = (start * group) >> shift
                some = least(((start + count) * group - 1) >> shift, blocks - 1) - block0 + 1
                for t in range(tiles):
                    for r in range(b_rows):
                        n = least(first + t * b_rows + r, rows - 1)
                        scales = find_scales(
                            absmax, codes, table, offset, n * blocks + block0, some, spare
                        )
                        unpack_row(
                            weights + r * 64, packed + n * (k >> 1), values, scales - block0 * 4,
                            start, count, k, shift, blocks - 1,
                        )  # fmt: skip
                    for p in range(panels):
                        multiply_tile(
                            x + (p * groups + start) * vectors * a_rows * 64,
                            weights,
                            count * vectors,
                            sums + p * a_rows * stride + t * b_rows * 4,
                            stride,
                        )
            for row in range(m):
                finish(out, sums + row * stride, bias, row * rows + first, first, columns)

    return multiply


def _finish(dtype: str) -> Any:
    """Function that adds the bias to a row of sums and stores it as `dtype`."""
    read, write, size = simd.reader(dtype), simd.writer(dtype), simd.SIZE[dtype]
    read_one, write_one = simd.scalar_reader(dtype), simd.scalar_writer(dtype)
    load_f32, load_f32x16, add = simd.load_f32, simd.load_f32x16, simd.add

    @decode.inline
    def finish(out, sums, bias, to, first, columns):
        whole = columns & ~15
        for c in range(0, whole, 16):
            total = load_f32x16(sums + c * 4)
            if bias != 0:
                total = add(total, read(bias + (first + c) * size))
            write(out + (to + c) * size, total)
        for c in range(whole, columns):
            one = load_f32(sums + c * 4)
            if bias != 0:
                one += read_one(bias + (first + c) * size)
            write_one(out + (to + c) * size, one)

    return finish
