"""nest_absmax on CUDA: sum_parts.cuh, then quantize_blockwise.cuh less the mean."""

from __future__ import annotations

from functools import cache

import torch

from bitsanywhere.backends.cuda import quantize_blockwise
from bitsanywhere.backends.cuda.jit import (
    KernelSource,
    LoadedKernel,
    compile_ahead,
    compile_many,
    current_stream,
)
from bitsanywhere.backends.cuda.parameters import aligned_copy, grid_size
from bitsanywhere.backends.cuda.workspace import workspace
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.ops.nest_absmax import Nested
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# As many as a warp has lanes.
_PARTS = 32
_SUM = KernelSource("sum_parts.cuh", "sum_parts", (("PARTS", _PARTS),))


def _config(target: Target) -> quantize_blockwise.Config:
    return quantize_blockwise.choose(torch.float32, NESTED_BLOCKSIZE, target)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` asks for."""
    threads = _config(target).threads
    centered = quantize_blockwise.source(torch.float32, NESTED_BLOCKSIZE, threads, centered=True)
    return [_SUM, centered]


@cache
def _plan(index: int) -> tuple[LoadedKernel, LoadedKernel, quantize_blockwise.Config]:
    target = Target.of(torch.device("cuda", index))
    summing, centered = compile_many(sources(target), target, index, progress=False)
    return summing, centered, _config(target)


def run(absmax: torch.Tensor, code: torch.Tensor) -> Nested:
    """uint8 codes of absmax's shape, their float32 scales, and the mean as a scalar tensor."""
    absmax, code = aligned_copy(absmax), code.contiguous()
    count = absmax.numel()
    codes = torch.empty(absmax.shape, dtype=torch.uint8, device=absmax.device)
    outer = absmax.new_empty(-(-count // NESTED_BLOCKSIZE))
    if count == 0:
        return codes, outer, absmax.new_zeros(())
    offset = absmax.new_empty(())
    index = absmax.get_device()
    summing, centered, config = _plan(index)
    stream = current_stream(index)
    parts, _ = workspace(index, stream, 2 * _PARTS).addresses
    x = absmax.data_ptr()
    summing.launch((_PARTS,), 1024, 0, stream, (x, parts, count))
    work = -(-count // (config.tile * config.threads // 32))
    centered.launch(
        (grid_size(work, config.blocks),), config.threads, config.shared_memory, stream,
        (
            x, code.data_ptr(), codes.data_ptr(), outer.data_ptr(), count, config.parts, parts,
            offset.data_ptr(),
        ),
    )  # fmt: skip
    return codes, outer, offset


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


@cache
def expect(device: torch.device) -> None:
    """Compiles what `run` needs, in the background."""
    compile_ahead(sources(Target.of(device)), device.index)


KERNEL = Kernel(run=run, why_not=why_not, expect=expect)
