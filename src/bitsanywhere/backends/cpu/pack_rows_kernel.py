"""Device code that lays activations out in panels for `gemm_4bit_kernel`, and a row of them for
`gemv_4bit_kernel`.

The layout is that of `panels.py`; a panel has `height` rows, zeros past the last.
"""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, simd
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.backends.cpu.panels import BF16, F32


def build(machine: Machine, dtype: str, bf16: bool) -> Any:
    """The kernel for activations of `dtype`, packed as bfloat16 or else as float32.

    Its arguments: task counter; x of shape (rows, K), row-major; rows; K; panels; height of a
    panel; rows with the padding. A task is a row.
    """
    order, size, fill = (BF16 if bf16 else F32), simd.SIZE[dtype], row(dtype, bf16)
    take, address_of, store, zeros = simd.take, simd.address_of, simd.store, simd.zeros_f32x16
    group, vectors = order.group, order.vectors

    def pack(args):
        x, rows, k, panels, height, padded = (
            args[1], args[2], args[3], args[4], args[5], args[6],
        )  # fmt: skip
        count = (k + group - 1) // group * vectors
        while True:
            n = take(address_of(args), 1)
            if n >= padded:
                return
            to = panels + (n // height * count * height + n % height) * 64
            if n < rows:
                fill(to, height * 64, x + n * k * size, k)
            else:
                for i in range(count):
                    store(to + i * height * 64, zeros(0))

    return pack


def row(dtype: str, bf16: bool) -> Any:
    """Function (to, stride, source, k): a row of `dtype` as vectors, `stride` bytes apart."""
    return _words() if bf16 else _floats(dtype)


def _words() -> Any:
    deal, scratch, size = simd.deal_words, simd.scratch, BF16.group
    load_u16, store, zeros = simd.load_u16, simd.store, simd.zeros_f32x16

    @decode.inline
    def fill(to, stride, source, k):
        whole = k // size
        for group in range(whole):
            deal(to + group * 4 * stride, stride, source + group * 256)
        if whole * size < k:
            spare = scratch(0)
            for i in range(4):
                store(spare + i * 64, zeros(0))
            for i in range(k - whole * size):
                store(spare + i * 2, load_u16(source + whole * 256 + i * 2))
            deal(to + whole * 4 * stride, stride, spare)

    return fill


def _floats(dtype: str) -> Any:
    read, size, length = simd.reader(dtype), simd.SIZE[dtype], F32.group
    evens, odds, store = simd.evens, simd.odds, simd.store

    @decode.inline
    def fill(to, stride, source, k):
        for group in range(k // length):
            place = source + group * length * size
            first, second = read(place), read(place + 16 * size)
            store(to + 2 * group * stride, evens(first, second))
            store(to + (2 * group + 1) * stride, odds(first, second))

    return fill
