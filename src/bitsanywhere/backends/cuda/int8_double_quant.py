"""int8_double_quant on CUDA: rows by int8_vectorwise_quant, columns by int8_columns.cuh."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from bitsanywhere.backends.cuda import int8_vectorwise_quant
from bitsanywhere.backends.cuda.jit import Bound, KernelSource, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, aligned
from bitsanywhere.ops.int8_double_quant import Quantized
from bitsanywhere.ops.int8_vectorwise_quant import rounded_threshold, row_count
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# struct Arguments of int8_columns.cuh.
_ARGUMENTS = "<3Q2qfi"
_ENTRIES = ("int8_column_absmax", "int8_column_codes")
_THREADS, _BLOCK_COLUMNS, _BLOCK_ROWS = 256, 256, 8


def choose(m: int, k: int, target: Target) -> tuple[int, int]:
    """The grid for m rows of k elements: over columns, and so far over rows as fills the chip."""
    across = -(-k // _BLOCK_COLUMNS)
    most = max(1, target.sm_count * (2048 // _THREADS) // across)
    return across, max(1, min(-(-m // (4 * _BLOCK_ROWS)), most))


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` may ask for, besides those of int8_vectorwise_quant."""
    return [source(dtype, entry) for dtype in DTYPES for entry in _ENTRIES]


def source(dtype: torch.dtype, entry: str) -> KernelSource:
    """One of the two kernels, for a dtype of the rows."""
    defines = ("DTYPE", DTYPES[dtype]), ("CODES", _ENTRIES.index(entry))
    return KernelSource("int8_columns.cuh", entry, defines)


@lru_cache(maxsize=4096)
def _bound(index: int, m: int, k: int, dtype: torch.dtype) -> list[Bound]:
    target = Target.of(torch.device("cuda", index))
    kernels = [get_kernel(source(dtype, entry), target, index) for entry in _ENTRIES]
    grid = choose(m, k, target)
    return [kernel.bind(grid, _THREADS, 0, _ARGUMENTS) for kernel in kernels]


def run(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """Codes by row and by column, statistics, outlier columns; waits if there is a threshold."""
    A = A.contiguous()
    by_row, row_stats, columns = int8_vectorwise_quant.run(A, threshold)
    m, k = row_count(A), A.shape[-1]
    by_column = torch.empty(A.shape, dtype=torch.int8, device=A.device)
    col_stats = torch.zeros((k,), dtype=torch.float32, device=A.device)
    if A.numel():
        index, address = A.get_device(), A.data_ptr()
        limit = rounded_threshold(threshold, A.dtype) if threshold > 0 else math.nan
        for kernel in _bound(index, m, k, A.dtype):
            packed = kernel.pack(
                address, by_column.data_ptr(), col_stats.data_ptr(), m, k, limit,
                aligned(address, k * A.element_size()),
            )  # fmt: skip
            kernel.launch(current_stream(index), packed)
    return by_row, by_column, row_stats, col_stats, columns


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
