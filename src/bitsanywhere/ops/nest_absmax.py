"""nest_absmax: quantizes the scales of a 4-bit tensor too (double quantization, QLoRA section 3).

    offset = mean(absmax)                                                (float32)
    absmax_8bit, outer = quantize_blockwise(absmax - offset, code, blocksize 256)

so that gemm_4bit and dequantize_4bit_nested find absmax again, nearly, as
``code[absmax_8bit[i]] * outer[i // 256] + offset``. The order in which the mean is summed up is
left to the implementation: the offset may differ in its last bit.
"""

from __future__ import annotations

import torch

from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.ops.quantize_blockwise import quantize_blockwise_torch

SCHEMA = "(Tensor absmax, Tensor code) -> (Tensor, Tensor, Tensor)"
Nested = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check(absmax: torch.Tensor, code: torch.Tensor) -> None:
    """Allowed: float32 absmax of any shape, float32 code of 256 entries."""
    checks.check_dtype("nest_absmax", "absmax", absmax, torch.float32)
    checks.check_dtype("nest_absmax", "code", code, torch.float32)
    checks.check_numel("nest_absmax", "code", code, 256, "one a code")
    checks.check_same_device("nest_absmax", absmax, code=code)


def fake(absmax: torch.Tensor, code: torch.Tensor) -> Nested:
    """(absmax_8bit uint8 of absmax's shape, outer float32 (blocks,), offset float32 scalar)."""
    blocks = checks.blocks(absmax.numel(), NESTED_BLOCKSIZE)
    return (
        absmax.new_empty(absmax.shape, dtype=torch.uint8),
        absmax.new_empty((blocks,)),
        absmax.new_empty(()),
    )


def nest_absmax_torch(absmax: torch.Tensor, code: torch.Tensor) -> Nested:
    """The op in plain torch."""
    offset = mean(absmax)
    codes, outer = quantize_blockwise_torch(absmax - offset, code, NESTED_BLOCKSIZE)
    return codes, outer, offset


def mean(absmax: torch.Tensor) -> torch.Tensor:
    """The mean as a scalar tensor, 0 of nothing."""
    return absmax.mean() if absmax.numel() else absmax.new_zeros(())


OP = registry.register("nest_absmax", SCHEMA, check=check, fake=fake, reference=nest_absmax_torch)
