"""Device code that lays activations out in panels for `gemv_4bit_kernel` and `gemm_4bit_kernel`.

The layout is that of `panels.py`; a panel has `height` rows, zeros past the last.
"""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import simd
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.backends.cpu.panels import BF16, F32


def build(machine: Machine, dtype: str, bf16: bool) -> Any:
    """The kernel for activations of `dtype`, packed as bfloat16 or else as float32.

    Its arguments: task counter; x of shape (rows, K), row-major; rows; K; panels; height of a
    panel; rows with the padding. A task is a row.
    """
    return _words(dtype) if bf16 else _floats(dtype)


def _words(dtype: str) -> Any:
    deal, take, address_of, scratch = (
        simd.deal_words, simd.take, simd.address_of, simd.scratch,
    )  # fmt: skip
    load_u16, store, zeros = simd.load_u16, simd.store, simd.zeros_f32x16
    size, vectors = BF16.group, BF16.vectors

    def pack(args):
        x, rows, k, panels, height, padded = (
            args[1], args[2], args[3], args[4], args[5], args[6],
        )  # fmt: skip
        spare = scratch(0)
        whole = k // size
        groups = (k + size - 1) // size
        while True:
            row = take(address_of(args), 1)
            if row >= padded:
                return
            panel, place = row // height, row % height
            to = panels + (panel * groups * vectors * height + place) * 64
            step, stride = vectors * height * 64, height * 64
            if row < rows:
                source = x + row * k * 2
                for group in range(whole):
                    deal(to + group * step, stride, source + group * 256)
                if whole < groups:
                    for i in range(4):
                        store(spare + i * 64, zeros(0))
                    for i in range(k - whole * size):
                        store(spare + i * 2, load_u16(source + whole * 256 + i * 2))
                    deal(to + whole * step, stride, spare)
            else:
                for i in range(groups * vectors):
                    store(to + i * stride, zeros(0))

    return pack


def _floats(dtype: str) -> Any:
    read, size = simd.reader(dtype), simd.SIZE[dtype]
    take, address_of, evens, odds = simd.take, simd.address_of, simd.evens, simd.odds
    store, zeros, length, vectors = simd.store, simd.zeros_f32x16, F32.group, F32.vectors

    def pack(args):
        x, rows, k, panels, height, padded = (
            args[1], args[2], args[3], args[4], args[5], args[6],
        )  # fmt: skip
        groups = k // length
        while True:
            row = take(address_of(args), 1)
            if row >= padded:
                return
            panel, place = row // height, row % height
            to = panels + (panel * groups * vectors * height + place) * 64
            for group in range(groups):
                even, odd = zeros(0), zeros(0)
                if row < rows:
                    source = x + (row * k + group * length) * size
                    first, second = read(source), read(source + 16 * size)
                    even, odd = evens(first, second), odds(first, second)
                store(to + 2 * group * height * 64, even)
                store(to + (2 * group + 1) * height * 64, odd)

    return pack
