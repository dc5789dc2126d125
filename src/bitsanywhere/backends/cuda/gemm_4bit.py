"""gemm_4bit on CUDA: launch of what gemm_4bit_config.py chooses."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from bitsanywhere.backends.cuda import dequantize_4bit, dequantize_blockwise
from bitsanywhere.backends.cuda.gemm_4bit_config import (
    Config,
    DequantizeConfig,
    GeneralConfig,
    choose,
    every_config,
)
from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, codebook
from bitsanywhere.backends.cuda.workspace import workspace
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# struct Arguments of gemm_4bit_arguments.cuh.
_pack_arguments: Callable[..., bytes] = struct.Struct("<11Q4q").pack
_NESTED_BLOCKSIZE = 256


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` or gemv_4bit may ask for."""
    found = {
        config.source(dtype, nested)
        for dtype in DTYPES
        for config in every_config(dtype, target)
        for nested in (False, True)
    }
    return sorted(found, key=repr)


# Configuration, kernel, grid, threads, dynamic shared memory, floats of workspace.
Plan = tuple[Config, "LoadedKernel | None", tuple[int, ...], int, int, int]


@lru_cache(maxsize=4096)
def _plan(
    index: int, m: int, n: int, k: int, dtype: torch.dtype, blocksize: int, nested: bool,
    aligned: bool,
) -> Plan:  # fmt: skip
    target = Target.of(torch.device("cuda", index))
    config = choose(m, n, k, dtype, blocksize, target, aligned)
    if isinstance(config, DequantizeConfig):
        return config, None, (0,), 0, 0, 0
    kernel = get_kernel(config.source(dtype, nested), target, index)
    if isinstance(config, GeneralConfig):
        return config, kernel, config.grid, config.threads, 0, 0
    return (
        config, kernel, (config.grid,), config.threads, config.stages_bytes, config.partial_floats
    )  # fmt: skip


def run(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """A @ dequantize(B).T + bias, of A's dtype and shape (..., N)."""
    nested = None
    if absmax_8bit is not None and absmax_code is not None and absmax_offset is not None:
        nested = (absmax_8bit, absmax_code, absmax_offset)
    code = codebook(quant_type, A.device)
    return multiply(A, B, shapeB, absmax, blocksize, code, bias, nested)


def multiply(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    code: torch.Tensor,
    bias: torch.Tensor | None,
    nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `run`, for any codebook.

    Args:
        code: 16 floats, by code.
        nested: (absmax_8bit, absmax_code, absmax_offset), or None for plain scales.
        out: contiguous, of A's dtype and shape (..., N); None for a new tensor.
    """
    n, k = shapeB
    A = _dense(A)
    B, absmax = B.contiguous(), absmax.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    dtype = A.dtype
    result = A.new_empty((*A.shape[:-1], n)) if out is None else out
    count = result.numel()
    if count == 0:
        return result
    m = count // n
    index = A.get_device()
    weights = B.data_ptr()
    _, kernel, grid, threads, shared, floats = _plan(
        index, m, n, k, dtype, blocksize, nested is not None, weights % 16 == 0
    )
    if kernel is None:
        return _multiply_dense(A, B, shapeB, absmax, blocksize, code, bias, nested, result)
    codes = scale_codes = offset = 0
    if nested is not None:
        absmax_8bit, absmax_code, absmax_offset = nested = tuple(x.contiguous() for x in nested)
        codes, scale_codes = absmax_8bit.data_ptr(), absmax_code.data_ptr()
        offset = absmax_offset.data_ptr()
    stream = current_stream(index)
    partial = arrivals = 0
    if floats:
        scratch = workspace(index, stream, floats)
        partial, arrivals = scratch.addresses
    arguments = _pack_arguments(
        A.data_ptr(), weights, absmax.data_ptr(), codes, scale_codes, offset,
        code.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(),
        partial, arrivals, m, n, k, blocksize.bit_length() - 1,
    )  # fmt: skip
    kernel.launch(grid, threads, shared, stream, (arguments,))
    return result


def _dense(A: torch.Tensor) -> torch.Tensor:
    """A, contiguous and at an address that is a multiple of 16."""
    if not A.is_contiguous():
        return A.contiguous()
    return A if A.data_ptr() % 16 == 0 else A.clone()


def _multiply_dense(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    code: torch.Tensor,
    bias: torch.Tensor | None,
    nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """The weight dequantized to a tensor that lives only here, then torch's matrix product."""
    weight = dense_weight(B, shapeB, absmax, blocksize, code, A.dtype, nested)
    n, k = shapeB
    rows, result = A.detach().view(-1, k), out.view(-1, n)
    if bias is None:
        torch.mm(rows, weight.t(), out=result)
    else:
        torch.addmm(bias.detach(), rows, weight.t(), out=result)
    return out


def dense_weight(
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    code: torch.Tensor,
    dtype: torch.dtype,
    nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The dequantized weight, shape (N, K); scales and codebook as in `multiply`."""
    if nested is not None:
        absmax_8bit, absmax_code, absmax_offset = nested
        absmax = dequantize_blockwise.run(
            absmax_8bit, absmax, absmax_code, _NESTED_BLOCKSIZE, torch.float32
        ).add_(absmax_offset.detach())
    return dequantize_4bit.decode(B, absmax, blocksize, code, shapeB, dtype)


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
