"""dequantize_4bit: the inverse of quantize_4bit.

    out[i] = round_to_dtype(float32(values[code[i]]) * absmax[i // blocksize])

with one float32 multiplication and one rounding to nearest even.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.formats import BLOCKSIZES_4BIT, cached_tensor, codebook4
from bitsanywhere.ops import checks, registry

_ARGS = "Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype"
SCHEMA = f"({_ARGS}) -> Tensor"
OUT_SCHEMA = f"({_ARGS}, Tensor(a!) out) -> ()"
_CHUNK = 1 << 18


def check(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Allowed: A with (n + 1) // 2 bytes for the n elements of shape, one absmax a block."""
    checks.check_blocksize("dequantize_4bit", blocksize, BLOCKSIZES_4BIT)
    codebook4(quant_type)
    checks.check_float("dequantize_4bit", "dtype", dtype)
    count = checks.check_shape("dequantize_4bit", shape)
    checks.check_packed("dequantize_4bit", "A", A, count)
    checks.check_dtype("dequantize_4bit", "absmax", absmax, torch.float32)
    checks.check_numel(
        "dequantize_4bit", "absmax", absmax, checks.blocks(count, blocksize), "one a block"
    )
    checks.check_same_device("dequantize_4bit", A, absmax=absmax)


def fake(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A tensor of the given shape and dtype."""
    return A.new_empty(tuple(shape), dtype=dtype)


def dequantize_4bit_torch(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The op in plain torch, in chunks."""
    return lookup_torch(
        A, absmax, blocksize, cached_tensor(codebook4(quant_type), A.device), shape, dtype
    )


def lookup_torch(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    code: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """As the op, for any 16-entry float32 codebook ``code``."""
    data = checks.as_bytes(A)
    out = torch.empty(tuple(shape), dtype=dtype, device=A.device)
    flat = out.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = data[start // 2 : (start + _CHUNK) // 2]
        codes = torch.stack((part >> 4, part & 15), dim=1).view(-1).int()
        count = min(_CHUNK, flat.numel() - start)
        scale = absmax.view(-1)[start // blocksize :][: checks.blocks(count, blocksize)]
        padded = torch.nn.functional.pad(code[codes[:count]], (0, -count % blocksize))
        values = padded.view(-1, blocksize) * scale.unsqueeze(1)
        flat[start : start + count] = values.view(-1)[:count].to(dtype)
    return out


OP = registry.register(
    "dequantize_4bit",
    SCHEMA,
    check=check,
    fake=fake,
    reference=dequantize_4bit_torch,
    out_schema=OUT_SCHEMA,
)
