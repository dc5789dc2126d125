"""gemm_4bit: out = A @ dequantize(B).T + bias, for a 4-bit weight B of shape (N, K).

Blocks run over the flattened weight, so where ``K % blocksize != 0`` a block spans rows. With
nested statistics (double quantization, QLoRA section 3) the scale of block ``i`` is

    absmax_code[absmax_8bit[i]] * absmax[i // 256] + absmax_offset          (float32)

and ``absmax`` holds the scales of the scales; otherwise it is ``absmax[i]``. Products are
accumulated in float32. A kernel may apply the scale to the accumulator instead of rounding every
weight to A's dtype, which is the more exact order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.formats import BLOCKSIZES_4BIT, codebook4
from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.dequantize_4bit import dequantize_4bit_torch

SCHEMA = (
    "(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, "
    "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
    "Tensor? absmax_offset=None) -> Tensor"
)
NESTED_BLOCKSIZE = 256


def check(
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
) -> None:
    """Allowed: A of shape (..., K), B the packed (N, K) weight, all nested statistics or none."""
    codebook4(quant_type)
    check_shapes("gemm_4bit", A, B, shapeB, blocksize)
    count = checks.blocks(shapeB[0] * shapeB[1], blocksize)
    nested = (absmax_8bit, absmax_code, absmax_offset)
    if absmax_8bit is None and absmax_code is None and absmax_offset is None:
        checks.check_numel("gemm_4bit", "absmax", absmax, count, "one a block")
    elif absmax_8bit is None or absmax_code is None or absmax_offset is None:
        given = [
            name
            for name, x in zip(("absmax_8bit", "absmax_code", "absmax_offset"), nested)
            if x is not None
        ]
        raise InvalidArgumentError(
            f"gemm_4bit: of the nested statistics only {', '.join(given)} given",
            "absmax_8bit, absmax_code and absmax_offset go together.",
        )
    else:
        check_nested("gemm_4bit", A, count, absmax, absmax_8bit, absmax_code, absmax_offset)
    checks.check_dtype("gemm_4bit", "absmax", absmax, torch.float32)
    checks.check_same_device("gemm_4bit", A, B=B, absmax=absmax, bias=bias)
    if bias is not None:
        checks.check_numel("gemm_4bit", "bias", bias, shapeB[0], "one an output")
        if bias.dtype != A.dtype:
            raise DtypeError(f"gemm_4bit: bias is {bias.dtype}", f"It must be A's {A.dtype}.")


def check_nested(
    op: str,
    A: torch.Tensor,
    blocks: int,
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor,
    absmax_code: torch.Tensor,
    absmax_offset: torch.Tensor,
) -> None:
    """Raises unless these are the nested statistics of so many blocks, on A's device."""
    checks.check_dtype(op, "absmax_8bit", absmax_8bit, torch.uint8)
    checks.check_dtype(op, "absmax", absmax, torch.float32)
    checks.check_dtype(op, "absmax_code", absmax_code, torch.float32)
    checks.check_dtype(op, "absmax_offset", absmax_offset, torch.float32)
    outer = checks.blocks(blocks, NESTED_BLOCKSIZE)
    checks.check_numel(op, "absmax_8bit", absmax_8bit, blocks, "one a block")
    checks.check_numel(op, "absmax", absmax, outer, f"one for {NESTED_BLOCKSIZE} blocks")
    checks.check_numel(op, "absmax_code", absmax_code, 256, "one a code")
    checks.check_numel(op, "absmax_offset", absmax_offset, 1, "a scalar")
    checks.check_same_device(
        op,
        A,
        absmax=absmax,
        absmax_8bit=absmax_8bit,
        absmax_code=absmax_code,
        absmax_offset=absmax_offset,
    )


def check_shapes(
    op: str, A: torch.Tensor, B: torch.Tensor, shapeB: Sequence[int], blocksize: int
) -> None:
    """What gemm_4bit and gemv_4bit ask of A, B and the shape of B."""
    checks.check_float(op, "A", A.dtype)
    checks.check_blocksize(op, blocksize, BLOCKSIZES_4BIT)
    if len(shapeB) != 2 or A.dim() == 0 or A.shape[-1] != shapeB[1]:
        raise InvalidArgumentError(
            f"{op}: A is {tuple(A.shape)}, the weight {tuple(shapeB)}",
            "A must be (..., K) and the weight (N, K).",
        )
    checks.check_packed(op, "B", B, checks.check_shape(op, shapeB))


def fake(A: torch.Tensor, B: torch.Tensor, shapeB: Sequence[int], *rest: object) -> torch.Tensor:
    """A tensor of A's dtype and shape (..., N)."""
    return A.new_empty((*A.shape[:-1], shapeB[0]))


def gemm_4bit_torch(
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
    """The op in plain torch: dequantize to A's dtype, then a matrix product."""
    scale = unnest_torch(absmax, absmax_8bit, absmax_code, absmax_offset)
    weight = dequantize_4bit_torch(B, scale, blocksize, quant_type, shapeB, A.dtype)
    return torch.nn.functional.linear(A, weight, bias)


def unnest_torch(
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor | None,
    absmax_code: torch.Tensor | None,
    absmax_offset: torch.Tensor | None,
) -> torch.Tensor:
    """The float32 scale of each block, shape (blocks,), from nested or plain statistics."""
    if absmax_8bit is None or absmax_code is None or absmax_offset is None:
        return absmax
    codes = absmax_8bit.reshape(-1)
    outer = absmax.view(-1).repeat_interleave(NESTED_BLOCKSIZE)[: codes.numel()]
    return absmax_code[codes.int()] * outer + absmax_offset


OP = registry.register("gemm_4bit", SCHEMA, check=check, fake=fake, reference=gemm_4bit_torch)
