"""dequantize_4bit on CUDA: configuration and launch of dequantize_4bit.cuh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, aligned, codebook, grid_size
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target


@dataclass(frozen=True)
class Config:
    """How a call is launched.

    Attributes:
        threads: of a block.
        tile: elements that a warp takes at once.
        most_blocks: beyond it, blocks take several tiles, since a grid has its limit.
    """

    threads: int
    tile: int
    most_blocks: int


def choose() -> Config:
    """The configuration, the same for all chips."""
    return Config(threads=256, tile=512, most_blocks=1 << 30)


def source(dtype: torch.dtype) -> KernelSource:
    """The kernel for a result dtype."""
    return KernelSource("dequantize_4bit.cuh", "dequantize_4bit", (("DTYPE", DTYPES[dtype]),))


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` may ask for."""
    return [source(dtype) for dtype in DTYPES]


@cache
def _plan(index: int, dtype: torch.dtype) -> tuple[LoadedKernel, Config]:
    target = Target.of(torch.device("cuda", index))
    return get_kernel(source(dtype), target, index), choose()


def run(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The dequantized tensor; `out`, if given, is contiguous, of that shape and dtype."""
    return decode(A, absmax, blocksize, codebook(quant_type, A.device), shape, dtype, out)


def decode(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    code: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `run`, for any codebook: 16 floats on A's device."""
    A, absmax = A.contiguous(), absmax.contiguous()
    result = torch.empty(tuple(shape), dtype=dtype, device=A.device) if out is None else out
    count = result.numel()
    if count:
        index = A.get_device()
        kernel, config = _plan(index, dtype)
        packed, target = A.data_ptr(), result.data_ptr()
        work = -(-count // (config.tile * config.threads // 32))
        kernel.launch(
            (grid_size(work, config.most_blocks),), config.threads, 0, current_stream(index),
            (
                packed, absmax.data_ptr(), code.data_ptr(), target, count,
                blocksize.bit_length() - 1, aligned(packed, target),
            ),
        )  # fmt: skip
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
