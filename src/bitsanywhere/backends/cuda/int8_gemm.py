"""Products of int8 matrices on CUDA: launch of what int8_gemm_config.py chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda.int8_gemm_config import (
    DEQUANT,
    RAW,
    RESULTS,
    LibraryConfig,
    WgmmaConfig,
    choose,
    dequant_grid,
    every_config,
)
from bitsanywhere.backends.cuda.jit import Bound, KernelSource, current_stream, get_kernel
from bitsanywhere.backends.cuda.tensor_map import tensor_map
from bitsanywhere.targets import Target

# struct Arguments of int8_factors.cuh.
_ARGUMENTS = "<11Q4q3I4x"
# What follows it in int8_wgmma.cuh: padding and two tensor maps.
_WITH_MAPS = _ARGUMENTS + "40x128s128s"
_DEQUANT_THREADS = 256


class Codes(NamedTuple):
    """Quantized activations: m rows, `stride` bytes apart, the codes beyond K being zero.

    Attributes:
        address: of the first.
        tensor: makes a tensor of them, (m, stride).
    """

    address: int
    stride: int
    tensor: Callable[[], torch.Tensor]


class Scales(NamedTuple):
    """Addresses of the statistics (m and n float32) and the bias (n of the result's dtype)."""

    a: int
    b: int
    bias: int


class Outliers(NamedTuple):
    """Outlier columns: those marked in a mask, or those listed. Fields are addresses, unless said.

    Attributes:
        activations: (m, k) in the result's dtype.
        mask: (k + 31) // 32 words of 32 bits, which are zero afterwards; 0 if there is none.
        arrivals: a 32-bit counter that is zero before and after, for a mask.
        columns: 32-bit indices, without a mask.
        count: how many; a number.
        codes_are_zero: in these columns; a truth value.
    """

    activations: int = 0
    mask: int = 0
    arrivals: int = 0
    columns: int = 0
    count: int = 0
    codes_are_zero: bool = False


_NO_OUTLIERS = Outliers()
_NO_SCALES = Scales(0, 0, 0)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `multiply` and `dequantize` may ask for."""
    found = {config.source(dtype) for config in every_config(target) for dtype in RESULTS}
    return [*sorted(found, key=repr), DEQUANT]


@lru_cache(maxsize=4096)
def _plan(
    index: int, m: int, n: int, k: int, dtype: torch.dtype, aligned: bool, overlap: bool
) -> tuple[Bound | None, tuple[int, int] | None]:
    """The kernel, None for torch's own product; and rows that it copies at once, if it does so."""
    target = Target.of(torch.device("cuda", index))
    config = choose(m, n, k, target, aligned)
    if isinstance(config, LibraryConfig):
        return None, None
    kernel = get_kernel(config.source(dtype), target, index)
    grid, threads = (config.grid,), config.threads
    if isinstance(config, WgmmaConfig):
        bound = kernel.bind(grid, threads, config.dynamic_bytes, _WITH_MAPS, overlap)
        return bound, (config.tile_m, config.tile_n)
    return kernel.bind(grid, threads, 0, _ARGUMENTS, overlap), None


@lru_cache(maxsize=4096)
def _dequant(index: int, m: int, n: int) -> Bound:
    kernel = get_kernel(DEQUANT, Target.of(torch.device("cuda", index)), index)
    return kernel.bind((dequant_grid(m, n),), _DEQUANT_THREADS, 0, _ARGUMENTS)


def multiply(
    codes: Codes,
    B: torch.Tensor,
    out: torch.Tensor,
    scales: Scales = _NO_SCALES,
    outliers: Outliers = _NO_OUTLIERS,
    overlap: bool = False,
) -> None:
    """out = codes @ B.T, scaled, with bias and outliers; if out is int32, the sums themselves.

    Args:
        B: int8 (N, K), contiguous.
        out: (..., N) with at least one element, contiguous, at an address that is a multiple of 16.
        overlap: fetch weights before the kernel ahead has ended. Only where that one is known, and
            has waited for whatever may have written them.
    """
    n, k = B.shape
    m = out.numel() // n
    index, weights = B.get_device(), B.data_ptr()
    address, stride, _ = codes
    kernel, boxes = _plan(index, m, n, k, out.dtype, (address | weights) % 16 == 0, overlap)
    if kernel is None:
        _multiply_library(codes, B, out, scales, outliers)
        return
    maps = ()
    if boxes is not None:
        maps = (
            tensor_map(address, m, k, stride, boxes[0]),
            tensor_map(weights, n, k, k, boxes[1]),
        )
    packed = kernel.pack(
        address, weights, 0, *scales, out.data_ptr(), *outliers[:4], m, n, k, stride,
        *outliers[4:], RESULTS[out.dtype], *maps,
    )  # fmt: skip
    kernel.launch(current_stream(index), packed)


def _multiply_library(
    codes: Codes, B: torch.Tensor, out: torch.Tensor, scales: Scales, outliers: Outliers
) -> None:
    """As `multiply`, by torch's own product, with the sums in a tensor that lives only here."""
    n, k = B.shape
    a, b = codes.tensor()[:, :k], B.t()
    if out.dtype == RAW:
        torch.ops.aten._int_mm.out(a, b, out=out.view(-1, n))
        return
    sums = torch.ops.aten._int_mm.default(a, b)
    dequantize(sums, out, scales, outliers, codes, B.data_ptr(), k)


def dequantize(
    sums: torch.Tensor,
    out: torch.Tensor,
    scales: Scales,
    outliers: Outliers = _NO_OUTLIERS,
    codes: Codes | None = None,
    weights: int = 0,
    k: int = 0,
) -> None:
    """out from the int32 sums (..., N), which are contiguous, at a multiple of 16, and not empty.

    Args:
        codes, weights, k: what the sums were made from, where there may be outliers.
    """
    n = sums.shape[-1]
    m = sums.numel() // n
    index = sums.get_device()
    address, stride = (codes.address, codes.stride) if codes is not None else (0, 0)
    kernel = _dequant(index, m, n)
    packed = kernel.pack(
        address, weights, sums.data_ptr(), *scales, out.data_ptr(), *outliers[:4], m, n, k, stride,
        *outliers[4:], RESULTS[out.dtype],
    )  # fmt: skip
    kernel.launch(current_stream(index), packed)
