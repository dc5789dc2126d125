"""int8_vectorwise_quant on CUDA: configuration and launch of int8_quantize.cuh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from bitsanywhere.backends.cuda.jit import Bound, KernelSource, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES
from bitsanywhere.ops.int8_vectorwise_quant import Quantized, rounded_threshold, row_count
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# struct Arguments of int8_quantize.cuh.
_ARGUMENTS = "<4Q4qfi"
_MOST_THREADS = 512


@dataclass(frozen=True)
class Config:
    """How a call is launched.

    Attributes:
        vectors: of 8 elements that a thread keeps in registers; 0 for any row, which is read twice.
        threads: of a block, which takes a row at a time.
        grid: blocks.
    """

    vectors: int
    threads: int
    grid: int

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for a dtype of the rows."""
        defines = (("DTYPE", DTYPES[dtype]), ("VECTORS", self.vectors))
        return KernelSource("int8_quantize.cuh", "int8_quantize", defines)


def choose(m: int, k: int, whole: bool, target: Target) -> Config:
    """The configuration for m rows of k elements.

    A few rows are spread over many threads, many rows over many blocks.

    Args:
        whole: k is a multiple of 8, and rows begin at multiples of 16 bytes.
    """
    vectors = -(-k // 8)
    each = 1 if m <= 2 * target.sm_count and vectors <= _MOST_THREADS else 4
    threads = min(_MOST_THREADS, max(64, -(-vectors // (32 * each)) * 32))
    if not whole or vectors > each * threads:
        each = 0
    grid = max(1, min(m, target.sm_count * (2048 // threads)))
    return Config(vectors=each, threads=threads, grid=grid)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `quantize` may ask for."""
    configs = [
        choose(1, 8, True, target),
        choose(1, 8192, True, target),
        choose(1, 7, False, target),
    ]
    return [config.source(dtype) for config in configs for dtype in DTYPES]


@lru_cache(maxsize=4096)
def _bound(index: int, m: int, k: int, dtype: torch.dtype, aligned: bool) -> Bound:
    target = Target.of(torch.device("cuda", index))
    config = choose(m, k, aligned and k % 8 == 0, target)
    kernel = get_kernel(config.source(dtype), target, index)
    return kernel.bind((config.grid,), config.threads, 0, _ARGUMENTS, overlap=True)


def quantize(
    rows: torch.Tensor,
    m: int,
    k: int,
    codes: int,
    stride: int,
    scales: int,
    mask: int = 0,
    threshold: float = 0.0,
) -> None:
    """Codes and scales of rows, and a mark for each outlier column.

    Args:
        rows: m * k elements, contiguous; m > 0.
        codes: address of int8 rows, `stride` apart; what is beyond k becomes 0. A multiple of 8.
        scales: address of m floats.
        mask: address of (k + 31) // 32 words, zero before, that get a bit for each outlier column.
        threshold: of outliers, if there is a mask.
    """
    index, dtype, address = rows.get_device(), rows.dtype, rows.data_ptr()
    limit = rounded_threshold(threshold, dtype) if mask else math.nan
    aligned = (address | k * rows.element_size()) % 16 == 0
    kernel = _bound(index, m, k, dtype, aligned)
    packed = kernel.pack(address, codes, scales, mask, m, k, stride, stride, limit, aligned)
    kernel.launch(current_stream(index), packed)


def run(A: torch.Tensor, threshold: float = 0.0) -> Quantized:
    """Codes, absmax and outlier columns; waits for the device if there is a threshold."""
    m, k = row_count(A), A.shape[-1]
    A = A.contiguous()
    codes = torch.empty(A.shape, dtype=torch.int8, device=A.device)
    scales = torch.empty((m,), dtype=torch.float32, device=A.device)
    mask = None
    if threshold > 0:
        mask = torch.zeros(-(-k // 32), dtype=torch.int32, device=A.device)
    if m and k:
        pointer = 0 if mask is None else mask.data_ptr()
        quantize(A, m, k, codes.data_ptr(), k, scales.data_ptr(), pointer, threshold)
    else:
        scales.zero_()
    if mask is None:
        return codes, scales, None
    bits = mask.view(-1, 1) >> torch.arange(32, dtype=torch.int32, device=A.device) & 1
    # The schema returns as many columns as there are: here the device is waited for.
    columns = bits.view(-1).nonzero().view(-1)
    if columns.numel():
        codes.view(m, k).index_fill_(1, columns, 0)
    return codes, scales, columns


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
