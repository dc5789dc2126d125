"""quantize_blockwise on CUDA: configuration and launch of quantize_blockwise.cuh."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, aligned_copy, grid_size, tile_size
from bitsanywhere.formats import BLOCKSIZES_8BIT, GRID_POINTS
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target


class Config(NamedTuple):
    """How a call is launched.

    Attributes:
        threads: of a block.
        tile: elements that a warp takes at once.
        parts: of a quantization block that is longer.
        shared_memory: bytes a block, the table of grid points.
        blocks: blocks that the chip holds at once.
    """

    threads: int
    tile: int
    parts: int
    shared_memory: int
    blocks: int


def choose(dtype: torch.dtype, blocksize: int, target: Target) -> Config:
    """The configuration: one table of grid points a multiprocessor, used by many threads."""
    # As many as leave each enough registers for its part of a tile. An H100 has room for two or
    # three tables, which measured slower.
    threads = 768 if dtype == torch.float16 else 1024
    tile = tile_size(dtype)
    return Config(threads, tile, max(1, blocksize // tile), GRID_POINTS, target.sm_count)


def source(
    dtype: torch.dtype, blocksize: int, threads: int, centered: bool = False
) -> KernelSource:
    """The kernel for a dtype, blocksize and block of threads; centered: less the mean."""
    defines = (
        ("DTYPE", DTYPES[dtype]),
        ("BLOCKSIZE", min(blocksize, tile_size(dtype))),
        ("THREADS", threads),
        ("CENTERED", int(centered)),
    )
    return KernelSource("quantize_blockwise.cuh", "quantize_blockwise", defines)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` may ask for."""
    every = (
        source(dtype, blocksize, choose(dtype, blocksize, target).threads)
        for dtype in DTYPES
        for blocksize in BLOCKSIZES_8BIT
    )
    return list(dict.fromkeys(every))


@cache
def _plan(index: int, dtype: torch.dtype, blocksize: int) -> tuple[LoadedKernel, Config]:
    target = Target.of(torch.device("cuda", index))
    config = choose(dtype, blocksize, target)
    return get_kernel(source(dtype, blocksize, config.threads), target, index), config


def run(A: torch.Tensor, code: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 codes of A's shape, and float32 absmax, shape (blocks,)."""
    A, code = aligned_copy(A), code.contiguous()
    count = A.numel()
    out = torch.empty(A.shape, dtype=torch.uint8, device=A.device)
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32, device=A.device)
    if count:
        index = A.get_device()
        kernel, config = _plan(index, A.dtype, blocksize)
        work = -(-count // (config.tile * config.threads // 32))
        kernel.launch(
            (grid_size(work, config.blocks),), config.threads, config.shared_memory,
            current_stream(index),
            (
                A.data_ptr(), code.data_ptr(), out.data_ptr(), absmax.data_ptr(), count,
                config.parts,
            ),
        )  # fmt: skip
    return out, absmax


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
