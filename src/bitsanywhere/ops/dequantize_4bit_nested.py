"""dequantize_4bit_nested: dequantize_4bit for scales that are quantized themselves.

    scale[i] = absmax_code[absmax_8bit[i]] * absmax[i // 256] + absmax_offset
    out = dequantize_4bit(A, scale, ...)

with both operations of the first line rounded to float32 (double quantization, QLoRA section 3). A
kernel does it in one pass over the weight: the scales are never written to memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.formats import BLOCKSIZES_4BIT, codebook4
from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.dequantize_4bit import dequantize_4bit_torch
from bitsanywhere.ops.gemm_4bit import check_nested, unnest_torch

SCHEMA = (
    "(Tensor A, Tensor absmax, Tensor absmax_8bit, Tensor absmax_code, Tensor absmax_offset, "
    "int blocksize, str quant_type, int[] shape, ScalarType dtype) -> Tensor"
)


def check(
    A: torch.Tensor,
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor,
    absmax_code: torch.Tensor,
    absmax_offset: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Allowed: A as in dequantize_4bit, one byte a block, one float32 for 256 blocks."""
    checks.check_blocksize("dequantize_4bit_nested", blocksize, BLOCKSIZES_4BIT)
    codebook4(quant_type)
    checks.check_float("dequantize_4bit_nested", "dtype", dtype)
    count = checks.check_shape("dequantize_4bit_nested", shape)
    checks.check_packed("dequantize_4bit_nested", "A", A, count)
    statistics = (absmax, absmax_8bit, absmax_code, absmax_offset)
    check_nested("dequantize_4bit_nested", A, checks.blocks(count, blocksize), *statistics)


def fake(
    A: torch.Tensor,
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor,
    absmax_code: torch.Tensor,
    absmax_offset: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A tensor of the given shape and dtype."""
    return A.new_empty(tuple(shape), dtype=dtype)


def dequantize_4bit_nested_torch(
    A: torch.Tensor,
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor,
    absmax_code: torch.Tensor,
    absmax_offset: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The op in plain torch."""
    scale = unnest_torch(absmax, absmax_8bit, absmax_code, absmax_offset)
    return dequantize_4bit_torch(A, scale, blocksize, quant_type, shape, dtype)


OP = registry.register(
    "dequantize_4bit_nested",
    SCHEMA,
    check=check,
    fake=fake,
    reference=dequantize_4bit_nested_torch,
)
