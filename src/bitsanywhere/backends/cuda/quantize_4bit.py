"""quantize_4bit on CUDA: configuration and launch of quantize_4bit.cuh."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import (
    DTYPES,
    aligned_copy,
    codec4_macros,
    grid_size,
    tile_size,
)
from bitsanywhere.formats import BLOCKSIZES_4BIT, FORMATS4
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target


class Config(NamedTuple):
    """How a call is launched.

    Attributes:
        threads: of a block.
        tile: elements that a warp takes at once.
        parts: of a quantization block that is longer.
        blocks: at most; each fills its table once.
    """

    threads: int
    tile: int
    parts: int
    blocks: int


def choose(dtype: torch.dtype, blocksize: int, target: Target) -> Config:
    """The configuration for inputs of a dtype."""
    tile = tile_size(dtype)
    parts = max(1, blocksize // tile)
    return Config(threads=256, tile=tile, parts=parts, blocks=target.sm_count * 64)


def source(dtype: torch.dtype, blocksize: int) -> KernelSource:
    """The kernel for a dtype and blocksize, and all formats."""
    longest = min(blocksize, tile_size(dtype))
    defines = (("DTYPE", DTYPES[dtype]), ("BLOCKSIZE", longest), *codec4_macros())
    return KernelSource("quantize_4bit.cuh", "quantize_4bit", defines)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` may ask for."""
    every = (source(dtype, blocksize) for dtype in DTYPES for blocksize in BLOCKSIZES_4BIT)
    return list(dict.fromkeys(every))


@cache
def _plan(index: int, dtype: torch.dtype, blocksize: int) -> tuple[LoadedKernel, Config]:
    target = Target.of(torch.device("cuda", index))
    kernel = get_kernel(source(dtype, blocksize), target, index)
    return kernel, choose(dtype, blocksize, target)


def run(
    A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes, shape (bytes / itemsize, 1), and float32 absmax, shape (blocks,)."""
    A = aligned_copy(A)
    count = A.numel()
    packed = torch.empty((count + 1) // 2, dtype=torch.uint8, device=A.device)
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32, device=A.device)
    if count:
        index = A.get_device()
        kernel, config = _plan(index, A.dtype, blocksize)
        work = -(-count // (config.tile * config.threads // 32))
        place = list(FORMATS4).index(quant_type)
        kernel.launch(
            (grid_size(work, config.blocks),), config.threads, 0, current_stream(index),
            (A.data_ptr(), packed.data_ptr(), absmax.data_ptr(), count, config.parts, place),
        )  # fmt: skip
    return packed.view(quant_storage).unsqueeze(1), absmax


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
