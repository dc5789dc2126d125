"""How activations and decoded weights lie in memory for the matrix products.

A row is cut into groups of consecutive elements and each group into 64-byte vectors, in the order
in which packed bytes give up their codes: as bfloat16, 128 elements in four vectors (bits 0-3, 4-7,
8-11 and 12-15 of 32 words); as float32, 32 elements in two (the even ones, the odd ones).

A panel holds a tile's rows: for each vector position those of all rows side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

VECTOR_BYTES = 64
# Rows of the weight that the kernel for few rows of activations decodes at a time.
WEIGHT_ROWS = 4


@dataclass(frozen=True)
class Order:
    """Elements of a group, and vectors they fill."""

    group: int
    vectors: int


@dataclass(frozen=True)
class Tile:
    """Rows of either operand that a tile takes, and float32 lanes of a register."""

    a_rows: int
    b_rows: int
    lanes: int


BF16, F32 = Order(group=128, vectors=4), Order(group=32, vectors=2)

TILES = {
    "avx512_bf16": Tile(a_rows=4, b_rows=6, lanes=16),
    "avx512": Tile(a_rows=4, b_rows=6, lanes=16),
    "avx2": Tile(a_rows=3, b_rows=4, lanes=8),
    "neon": Tile(a_rows=4, b_rows=6, lanes=4),
    "generic": Tile(a_rows=3, b_rows=4, lanes=4),
}
