"""dequantize_blockwise: the inverse of quantize_blockwise.

out[i] = round_to_dtype(code[A[i]] * absmax[i // blocksize])        (one float32 product)
"""

from __future__ import annotations

import torch

from bitsanywhere.formats import BLOCKSIZES_8BIT
from bitsanywhere.ops import checks, registry

_ARGS = "Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype"
SCHEMA = f"({_ARGS}) -> Tensor"
OUT_SCHEMA = f"({_ARGS}, Tensor(a!) out) -> ()"
_CHUNK = 1 << 18


def check(
    A: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, blocksize: int, dtype: torch.dtype
) -> None:
    """Allowed: uint8 A of any shape, one float32 absmax a block, float32 code of 256 entries."""
    checks.check_dtype("dequantize_blockwise", "A", A, torch.uint8)
    checks.check_dtype("dequantize_blockwise", "absmax", absmax, torch.float32)
    checks.check_dtype("dequantize_blockwise", "code", code, torch.float32)
    checks.check_numel("dequantize_blockwise", "code", code, 256, "one a code")
    checks.check_blocksize("dequantize_blockwise", blocksize, BLOCKSIZES_8BIT)
    checks.check_float("dequantize_blockwise", "dtype", dtype)
    checks.check_numel(
        "dequantize_blockwise", "absmax", absmax, checks.blocks(A.numel(), blocksize), "one a block"
    )
    checks.check_same_device("dequantize_blockwise", A, absmax=absmax, code=code)


def fake(
    A: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, blocksize: int, dtype: torch.dtype
) -> torch.Tensor:
    """A tensor of A's shape in dtype."""
    return A.new_empty(A.shape, dtype=dtype)


def dequantize_blockwise_torch(
    A: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, blocksize: int, dtype: torch.dtype
) -> torch.Tensor:
    """The op in plain torch, in chunks."""
    out = torch.empty(A.shape, dtype=dtype, device=A.device)
    codes, flat, scale = A.reshape(-1), out.view(-1), absmax.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = code[codes[start : start + _CHUNK].int()]
        padded = torch.nn.functional.pad(part, (0, -part.numel() % blocksize)).view(-1, blocksize)
        values = padded * scale[start // blocksize :][: padded.shape[0]].unsqueeze(1)
        flat[start : start + part.numel()] = values.view(-1)[: part.numel()].to(dtype)
    return out


OP = registry.register(
    "dequantize_blockwise",
    SCHEMA,
    check=check,
    fake=fake,
    reference=dequantize_blockwise_torch,
    out_schema=OUT_SCHEMA,
)
