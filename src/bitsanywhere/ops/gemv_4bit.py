"""gemv_4bit: out = A @ W.T for a 4-bit weight W of shape (N, K) and any 16-entry codebook.

    W[i] = code[packed code i] * absmax[i // blocksize]          over the flattened weight

As gemm_4bit, without bias and nested statistics; A is usually a single row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.dequantize_4bit import lookup_torch
from bitsanywhere.ops.gemm_4bit import check_shapes

_ARGS = "Tensor A, Tensor B, int[] shapeB, Tensor absmax, Tensor code, int blocksize"
SCHEMA = f"({_ARGS}) -> Tensor"
OUT_SCHEMA = f"({_ARGS}, Tensor(a!) out) -> ()"


def check(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
) -> None:
    """Allowed: A of shape (..., K), B the packed (N, K) weight, float32 code of 16 entries."""
    check_shapes("gemv_4bit", A, B, shapeB, blocksize)
    count = checks.blocks(shapeB[0] * shapeB[1], blocksize)
    checks.check_dtype("gemv_4bit", "absmax", absmax, torch.float32)
    checks.check_numel("gemv_4bit", "absmax", absmax, count, "one a block")
    checks.check_dtype("gemv_4bit", "code", code, torch.float32)
    checks.check_numel("gemv_4bit", "code", code, 16, "one a code")
    checks.check_same_device("gemv_4bit", A, B=B, absmax=absmax, code=code)


def fake(A: torch.Tensor, B: torch.Tensor, shapeB: Sequence[int], *rest: object) -> torch.Tensor:
    """A tensor of A's dtype and shape (..., N)."""
    return A.new_empty((*A.shape[:-1], shapeB[0]))


def gemv_4bit_torch(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
) -> torch.Tensor:
    """The op in plain torch: dequantize to A's dtype, then a matrix product."""
    weight = lookup_torch(B, absmax, blocksize, code, shapeB, A.dtype)
    return torch.nn.functional.linear(A, weight)


OP = registry.register(
    "gemv_4bit", SCHEMA, check=check, fake=fake, reference=gemv_4bit_torch, out_schema=OUT_SCHEMA
)
