"""out = A @ W.T + bias for a packed 4-bit weight W on CPUs, for gemm_4bit and gemv_4bit.

Three ways, see `choose`:

* `row`: few rows of activations, some at a time; weights are decoded in registers.
* `tile`: several rows; weights are decoded into panels in the cache, from which tiles of dot
  products are computed; in bfloat16 where the processor has dot products of them, else in float32.
* `dense`: slices of the weight are dequantized into a small buffer and handed to torch.
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch

from bitsanywhere.backends.cpu import dequantize_blockwise
from bitsanywhere.backends.cpu.common import NAMES, log2
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.dequantize_4bit import unpack
from bitsanywhere.backends.cpu.machine import host
from bitsanywhere.backends.cpu.memory import fresh
from bitsanywhere.backends.cpu.panels import BF16, F32, TILES, VECTOR_BYTES, WEIGHT_ROWS, Order
from bitsanywhere.backends.cpu.parallel import launch, threads

_DENSE_BYTES = 1 << 24
# Up to this many rows, a few at a time are faster than a tile.
_BF16_ROWS, _F32_ROWS = 24, 4
# Of them at most so many at a time, where registers are wide, and tasks for each thread.
_MOST_HEIGHT, _ROW_TASKS = 4, 8
# Past this many rows torch is faster: where registers are few, and with bfloat16 dot products.
_NARROW_TILE_ROWS, _BF16_TILE_ROWS = 16, 192
# Activations at a time, bytes of a weight row at a time, tiles a task: a panel of weights stays in
# the first-level cache, the activations' chunk in the second-level one.
_TILE_ROWS = 256
_CHUNK_BYTES = 3072
_TASK_TILES = 8
_NESTED_BLOCKSIZE = 256


class Weight(NamedTuple):
    """A packed weight of shape (n, k) with its scales.

    Attributes:
        packed: two codes a byte, contiguous, in any dtype.
        absmax: float32 scales; scales of the scales where `codes` is given.
        code: the codebook, 16 float32.
        codes, table, offset: nested statistics as in `ops.gemm_4bit`, or None.
    """

    packed: torch.Tensor
    n: int
    k: int
    absmax: torch.Tensor
    blocksize: int
    code: torch.Tensor
    codes: torch.Tensor | None = None
    table: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    def words(self) -> tuple[int, ...]:
        """Kernel arguments: packed, absmax, codes, table, offset, code."""
        nested = (0 if t is None else t.data_ptr() for t in (self.codes, self.table, self.offset))
        return (self.packed.data_ptr(), self.absmax.data_ptr(), *nested, self.code.data_ptr())


def choose(m: int, k: int, blocksize: int, dtype: torch.dtype) -> str:
    """The way for m rows of activations of `dtype`: "row", "tile" or "dense"."""
    if k % blocksize:
        return "dense"
    if m <= (_BF16_ROWS if _has_bf16(dtype) else _F32_ROWS):
        return "row"
    if _has_bf16(dtype):
        return "tile" if m <= _BF16_TILE_ROWS else "dense"
    wide = host().level.startswith("avx512")
    return "tile" if wide or m <= _NARROW_TILE_ROWS else "dense"


def linear(
    A: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """A @ W.T + bias.

    Args:
        A: activations of shape (..., k), contiguous.
        bias: of shape (n,) in A's dtype, or None.
        out: where to put the result, contiguous; None for a new tensor.

    Returns:
        A tensor of shape (..., n) in A's dtype.
    """
    m = A.numel() // weight.k if weight.k else A.shape[:-1].numel()
    result = fresh((*A.shape[:-1], weight.n), A.dtype) if out is None else out
    if result.numel() == 0:
        return result
    if weight.k == 0:
        return result.zero_() if bias is None else result.copy_(bias)
    way = choose(m, weight.k, weight.blocksize, A.dtype)
    serve = {"row": _row, "tile": _tile, "dense": _dense}[way]
    serve(A.view(m, weight.k), weight, bias, result.view(m, weight.n))
    return result


def _has_bf16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and host().level == "avx512_bf16"


def _row_height(m: int) -> int:
    """How many of m rows of activations the way "row" takes at a time: 1, 2 or 4."""
    if m == 1 or not host().level.startswith("avx512"):
        return 1
    return 2 if m == 2 else _MOST_HEIGHT


def _variant(A: torch.Tensor, weight: Weight) -> dict[str, Any]:
    bf16 = _has_bf16(A.dtype)
    return {"dtype": NAMES[A.dtype], "bf16": bf16, "fine": bf16 and weight.blocksize == 32}


def _pack(A: torch.Tensor, height: int, order: Order) -> torch.Tensor:
    """A, of shape (m, k), in panels of `height` rows."""
    m, k = A.shape
    rows = -(-m // height) * height
    groups = -(-k // order.group)
    panels = torch.empty(
        rows * groups * order.vectors * VECTOR_BYTES, dtype=torch.uint8, device="cpu"
    )
    function = kernel("pack_rows", dtype=NAMES[A.dtype], bf16=order is BF16)
    tasks = rows if rows * k > 1 << 15 else 1
    launch(function, tasks, A.data_ptr(), m, k, panels.data_ptr(), height, rows)
    return panels


def _row(A: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    variant, n, k, team = _variant(A, weight), weight.n, weight.k, threads()
    height = _row_height(A.shape[0])
    address = 0 if bias is None else bias.data_ptr()
    # A few tasks for each thread, of at least 32768 weights.
    batch = max(n // (team * _ROW_TASKS), (1 << 15) // k, 1)
    batch = -(-batch // WEIGHT_ROWS) * WEIGHT_ROWS
    order = BF16 if variant["bf16"] else F32
    row_bytes = -(-k // order.group) * order.vectors * VECTOR_BYTES
    scales = 0 if weight.codes is None else WEIGHT_ROWS * k // weight.blocksize * 4
    room = (height * row_bytes + scales + 127) // 64 * 64
    scratch = torch.empty(room * team, dtype=torch.uint8, device="cpu")
    for start in range(0, A.shape[0], height):
        m = min(height, A.shape[0] - start)
        launch(
            kernel("gemv_4bit", **variant, height=_row_height(m)), -(-n // batch),
            0, A.data_ptr() + start * k * A.element_size(), *weight.words(), address,
            out.data_ptr() + start * n * out.element_size(), n, k, log2(weight.blocksize),
            m, batch, scratch.data_ptr(), room,
        )  # fmt: skip


def _tile(A: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    variant, n, k = _variant(A, weight), weight.n, weight.k
    function = kernel("gemm_4bit", **variant)
    order, shape = (BF16 if variant["bf16"] else F32), TILES[host().level]
    group_bytes = order.vectors * VECTOR_BYTES
    chunk = min(_CHUNK_BYTES // group_bytes, -(-k // order.group))
    tiles = min(max(n // (shape.b_rows * 4 * threads()), 1), _TASK_TILES)
    width = tiles * shape.b_rows
    sums = -(-min(A.shape[0], _TILE_ROWS) // shape.a_rows) * shape.a_rows * (width + 8) * 4
    room = shape.b_rows * chunk * group_bytes + sums + k // weight.blocksize * 4
    room = (room + 127) // 64 * 64
    scratch = torch.empty(room * threads(), dtype=torch.uint8, device="cpu")
    for start in range(0, A.shape[0], _TILE_ROWS):
        rows, to = A[start : start + _TILE_ROWS], out[start]
        x = _pack(rows, shape.a_rows, order)
        launch(
            function, -(-n // width),
            0, x.data_ptr(), *weight.words(), 0 if bias is None else bias.data_ptr(),
            to.data_ptr(), n, k, log2(weight.blocksize), rows.shape[0], tiles, chunk,
            scratch.data_ptr(), room,
        )  # fmt: skip


@torch.no_grad()
def _dense(A: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    dtype = A.dtype if A.dtype == torch.float32 or _has_bf16(A.dtype) else torch.float32
    # Slices begin at a block's start.
    unit = weight.blocksize // gcd(weight.blocksize, weight.k)
    rows = max(_DENSE_BYTES // dtype.itemsize // weight.k // unit, 1) * unit
    scales = unnest(weight)
    buffer = torch.empty((min(rows, weight.n), weight.k), dtype=dtype, device="cpu")
    x = A.to(dtype)
    for start in range(0, weight.n, rows):
        piece = buffer[: min(rows, weight.n - start)]
        unpack(
            weight.packed.data_ptr() + start * weight.k // 2,
            scales.data_ptr() + start * weight.k // weight.blocksize * 4,
            weight.blocksize, weight.code, piece,
        )  # fmt: skip
        end = start + piece.shape[0]
        part = None if bias is None else bias[start:end].to(dtype)
        # Into a slice of columns torch would copy; the whole result it writes itself.
        whole = out if piece.shape[0] == weight.n and out.dtype == dtype else None
        if part is None:
            product = torch.mm(x, piece.t(), out=whole)
        else:
            product = torch.addmm(part, x, piece.t(), out=whole)
        if whole is None:
            out[:, start:end] = product


def unnest(weight: Weight) -> torch.Tensor:
    """The float32 scale of each block."""
    if weight.codes is None or weight.table is None or weight.offset is None:
        return weight.absmax
    scales = dequantize_blockwise.run(
        weight.codes, weight.absmax, weight.table, _NESTED_BLOCKSIZE, torch.float32
    )
    return scales.add_(weight.offset)
