"""dequantize_blockwise on CUDA: configuration and launch of dequantize_blockwise.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, aligned, grid_size
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target


@dataclass(frozen=True)
class Config:
    """How a call is launched.

    Attributes:
        threads: of a block.
        tile: elements that a warp takes at once.
        copies: of the codebook in shared memory.
        blocks: of which each fills its table once.
    """

    threads: int
    tile: int
    copies: int
    blocks: int


def choose(count: int, target: Target) -> Config:
    """The configuration for so many elements on a chip; 32 copies take 32 KiB.

    A multiprocessor holds 1024 threads at a time, by their registers: as one block they fill one
    table, where there are elements enough for as many blocks as multiprocessors.
    """
    tile = 2048
    threads = 1024 if count >= target.sm_count * 32 * tile else 512
    work = -(-count // (tile * threads // 32))
    return Config(threads, tile, copies=32, blocks=grid_size(work, target.sm_count * 32))


def source(dtype: torch.dtype, copies: int) -> KernelSource:
    """The kernel for a result dtype and number of codebook copies, for up to 1024 threads."""
    defines = (("DTYPE", DTYPES[dtype]), ("COPIES", copies))
    return KernelSource("dequantize_blockwise.cuh", "dequantize_blockwise", defines)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` may ask for."""
    copies = choose(1, target).copies
    return [source(dtype, copies) for dtype in DTYPES]


@lru_cache(maxsize=4096)
def _plan(index: int, dtype: torch.dtype, count: int) -> tuple[LoadedKernel, Config]:
    target = Target.of(torch.device("cuda", index))
    config = choose(count, target)
    return get_kernel(source(dtype, config.copies), target, index), config


def run(
    A: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The dequantized tensor; `out`, if given, is contiguous, of A's shape and of `dtype`."""
    A, absmax, code = A.contiguous(), absmax.contiguous(), code.contiguous()
    result = torch.empty(A.shape, dtype=dtype, device=A.device) if out is None else out
    count = A.numel()
    if count:
        index = A.get_device()
        kernel, config = _plan(index, dtype, count)
        codes, target = A.data_ptr(), result.data_ptr()
        kernel.launch(
            (config.blocks,), config.threads, 0, current_stream(index),
            (
                codes, absmax.data_ptr(), code.data_ptr(), target, count,
                blocksize.bit_length() - 1, aligned(codes, target),
            ),
        )  # fmt: skip
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
