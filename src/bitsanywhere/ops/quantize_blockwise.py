"""quantize_blockwise: 8-bit quantization against any ascending 256-entry codebook (Dettmers et
al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2).

For a block ``x`` of the flattened input, with ``absmax`` and ``inv`` as in quantize_4bit:

    s    = x * inv
    k    = clamp(floor((s + 1) * 32767.5 + 0.5), 0, 65535)     (0 for NaN)
    code = the one nearest to k / 32767.5 - 1, and the one nearest to 0 where s is 0
"""

from __future__ import annotations

import torch

from bitsanywhere.formats import BLOCKSIZES_8BIT, GRID_POINTS, GRID_SCALE, grid_codes, zero_code
from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.quantize_4bit import reciprocal

SCHEMA = "(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)"
_CHUNK = 1 << 18


def check(A: torch.Tensor, code: torch.Tensor, blocksize: int) -> None:
    """Allowed: float A of any shape, float32 code of 256 entries."""
    checks.check_float("quantize_blockwise", "A", A.dtype)
    checks.check_dtype("quantize_blockwise", "code", code, torch.float32)
    checks.check_numel("quantize_blockwise", "code", code, 256, "one a code")
    checks.check_blocksize("quantize_blockwise", blocksize, BLOCKSIZES_8BIT)
    checks.check_same_device("quantize_blockwise", A, code=code)


def fake(A: torch.Tensor, code: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 codes of A's shape, float32 absmax of shape (blocks,)."""
    absmax = A.new_empty((checks.blocks(A.numel(), blocksize),), dtype=torch.float32)
    return A.new_empty(A.shape, dtype=torch.uint8), absmax


def quantize_blockwise_torch(
    A: torch.Tensor, code: torch.Tensor, blocksize: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op in plain torch, in chunks."""
    table, zero = grid_codes(code), zero_code(code)
    flat = A.reshape(-1)
    out = torch.empty(A.shape, dtype=torch.uint8, device=A.device)
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
        grid = ((scaled + 1) * GRID_SCALE + 0.5).floor().nan_to_num(0.0)
        codes = table[grid.clamp(0, GRID_POINTS - 1).int()]
        codes = torch.where(scaled == 0, zero, codes)
        out.view(-1)[start : start + chunk.numel()] = codes.view(-1)[: chunk.numel()]
    return out, absmax


OP = registry.register(
    "quantize_blockwise", SCHEMA, check=check, fake=fake, reference=quantize_blockwise_torch
)
