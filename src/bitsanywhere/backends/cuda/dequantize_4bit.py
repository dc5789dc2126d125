"""dequantize_4bit on CUDA: launch of dequantize_4bit.cuh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, aligned, codebook
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# Of a block, and elements that it takes: one tile a warp.
_THREADS, _BLOCK_ELEMENTS = 256, 4096


def source(dtype: torch.dtype, nested: bool) -> KernelSource:
    """The kernel for a result dtype, and plain or nested scales."""
    defines = (("DTYPE", DTYPES[dtype]), ("NESTED", int(nested)))
    return KernelSource("dequantize_4bit.cuh", "dequantize_4bit", defines)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `decode` may ask for."""
    return [source(dtype, nested) for dtype in DTYPES for nested in (False, True)]


@cache
def _kernel(index: int, dtype: torch.dtype, nested: bool) -> LoadedKernel:
    return get_kernel(source(dtype, nested), Target.of(torch.device("cuda", index)), index)


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
    nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """As `run`, for any codebook and nested scales.

    Args:
        code: 16 floats on A's device.
        nested: (absmax_8bit, absmax_code, absmax_offset) as gemm_4bit takes them, or None.
    """
    A, absmax = A.contiguous(), absmax.contiguous()
    result = torch.empty(tuple(shape), dtype=dtype, device=A.device) if out is None else out
    count = result.numel()
    if count:
        statistics = [tensor.contiguous() for tensor in nested or ()]
        index = A.get_device()
        packed, target = A.data_ptr(), result.data_ptr()
        _kernel(index, dtype, nested is not None).launch(
            (-(-count // _BLOCK_ELEMENTS),), _THREADS, 0, current_stream(index),
            (
                packed, absmax.data_ptr(), code.data_ptr(), target, count,
                blocksize.bit_length() - 1, aligned(packed, target),
                *(tensor.data_ptr() for tensor in statistics),
            ),
        )  # fmt: skip
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
