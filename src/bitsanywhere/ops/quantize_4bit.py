"""quantize_4bit: blockwise 4-bit quantization (QLoRA, Dettmers et al. 2023, section 3).

The flattened input is cut into blocks of ``blocksize`` elements, the last one perhaps shorter.
For a block ``x``:

    absmax = max |x|                                   (float32; NaN if any x is NaN)
    inv    = min(1 / absmax, largest float32), and 0 where absmax is 0 or NaN
    code   = order[#{t in thresholds : not (x * inv <= t)}]

Two codes share a byte, the earlier element in the high four bits. An odd element count is
completed with the code of 0.
"""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.formats import BLOCKSIZES_4BIT, codebook4
from bitsanywhere.ops import checks, registry

SCHEMA = "(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) -> (Tensor, Tensor)"
FLOAT32_MAX = torch.finfo(torch.float32).max
_CHUNK = 1 << 18


def check(A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> None:
    """Allowed: float A of any shape; storage whose element size divides the packed bytes."""
    checks.check_float("quantize_4bit", "A", A.dtype)
    checks.check_blocksize("quantize_4bit", blocksize, BLOCKSIZES_4BIT)
    codebook4(quant_type)
    packed = (A.numel() + 1) // 2
    if quant_storage.is_complex or quant_storage == torch.bool or packed % quant_storage.itemsize:
        raise InvalidArgumentError(
            f"quantize_4bit: quant_storage is {quant_storage} for {packed} packed bytes",
            "It must be a real dtype whose element size divides the packed bytes.",
            "Use torch.uint8, which always fits.",
        )


def fake(
    A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes of shape (bytes / itemsize, 1) and float32 absmax of shape (blocks,)."""
    packed = A.new_empty(((A.numel() + 1) // 2 // quant_storage.itemsize, 1), dtype=quant_storage)
    return packed, A.new_empty((checks.blocks(A.numel(), blocksize),), dtype=torch.float32)


def quantize_4bit_torch(
    A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op in plain torch, in chunks, so that no float32 copy of A exists."""
    format4 = codebook4(quant_type)
    thresholds = torch.tensor(format4.thresholds, dtype=torch.float32, device=A.device)
    order = torch.tensor(format4.order, dtype=torch.uint8, device=A.device)
    flat = A.reshape(-1)
    packed = torch.empty((flat.numel() + 1) // 2, dtype=torch.uint8, device=A.device)
    absmax = torch.empty(
        checks.blocks(flat.numel(), blocksize), dtype=torch.float32, device=A.device
    )
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK].float()
        padded = torch.nn.functional.pad(chunk, (0, -chunk.numel() % blocksize))
        x = padded.view(-1, blocksize)
        largest = x.abs().amax(dim=1)
        absmax[start // blocksize :][: largest.numel()] = largest
        scaled = x * reciprocal(largest).unsqueeze(1)
        codes = order[torch.bucketize(scaled, thresholds, out_int32=True)].view(-1)
        pairs = codes[: chunk.numel() + chunk.numel() % 2].view(-1, 2)
        packed[start // 2 :][: pairs.shape[0]] = pairs[:, 0] << 4 | pairs[:, 1]
    return packed.view(quant_storage).unsqueeze(1), absmax


def reciprocal(absmax: torch.Tensor) -> torch.Tensor:
    """1 / absmax in float32, finite, and 0 where absmax is 0 or NaN."""
    inverse = (1 / absmax).clamp(max=FLOAT32_MAX)
    return torch.where(absmax > 0, inverse, 0.0)


OP = registry.register(
    "quantize_4bit", SCHEMA, check=check, fake=fake, reference=quantize_4bit_torch
)
