"""Products of int8 tensors under names that bitsandbytes keeps for old programs; each warns."""

from __future__ import annotations

import warnings
from typing import Optional

import torch

from bitsanywhere import ops
from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.functional.blockwise import into


def check_matmul(A, B, out, transposed_A, transposed_B, expected_type=torch.int8):
    """Deprecated. The shape of the product of ``A`` and ``B``.

    Args:
        A, B: matrices (rows, columns), or batches of them (batch, rows, columns).
        out: tensor for the result, or None. With two batches and an ``out`` of 2 dimensions the
            product is over batch and rows at once, as for the gradient of a weight.
        transposed_A, transposed_B: whether a factor's last two dimensions are to be swapped.
        expected_type: dtype of both.

    Raises:
        DtypeError, InvalidArgumentError: naming what was given and what is allowed.
    """
    _warn("check_matmul", "Pass int8 codes to int8_linear_matmul, which checks them itself.")
    if A.dtype != expected_type or B.dtype != expected_type:
        raise DtypeError(
            f"check_matmul: A is {A.dtype}, B is {B.dtype}",
            f"Both must be {expected_type}.",
            "Quantize them with int8_vectorwise_quant.",
        )
    return _shape("check_matmul", A, B, out, transposed_A, transposed_B)


def igemm(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    transposed_A=False,
    transposed_B=False,
):
    """Deprecated. A @ B of int8 tensors, int32; the arguments are those of `check_matmul`."""
    _warn("igemm", "Use int8_linear_matmul(A, B.t()).")
    shape = _shape("igemm", A, B, out, transposed_A, transposed_B)
    a, b = _swapped(A, transposed_A), _swapped(B, transposed_B)
    if len(shape) == 3 and b.dim() == 3:
        return into(_batched(a, b), out, "out")
    if b.dim() == 3:
        a, b = a.reshape(-1, a.shape[-1]).t(), b.reshape(-1, b.shape[-1])
    return into(ops.int8_linear_matmul(a, b.t()), out, "out")


def batched_igemm(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    transposed_A=False,
    transposed_B=False,
):
    """Deprecated. As `igemm` for two batches of matrices."""
    _warn("batched_igemm", "Use int8_linear_matmul for each pair of matrices.")
    if A.dim() != 3 or B.dim() != 3:
        raise InvalidArgumentError(
            f"batched_igemm: A is {tuple(A.shape)}, B is {tuple(B.shape)}",
            "Both must be (batch, rows, columns).",
            "Use igemm for matrices.",
        )
    _shape("batched_igemm", A, B, None, transposed_A, transposed_B)
    product = _batched(_swapped(A, transposed_A), _swapped(B, transposed_B))
    return into(product, out, "out")


def _batched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    shape = (a.shape[0], a.shape[1], b.shape[2])
    result = torch.empty(shape, dtype=torch.int32, device=a.device)
    for i in range(shape[0]):
        result[i] = ops.int8_linear_matmul(a[i], b[i].t())
    return result


def _swapped(x: torch.Tensor, transposed: bool) -> torch.Tensor:
    return x.transpose(-1, -2) if transposed else x


def _shape(
    name: str,
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor | None,
    transposed_A: bool,
    transposed_B: bool,
) -> tuple[int, ...]:
    a, b = A.shape, B.shape
    if len(a) in (2, 3) and len(b) in (2, 3) and len(a) >= len(b):
        a, b = _swapped(A, transposed_A).shape, _swapped(B, transposed_B).shape
        if a[-1] == b[-2] and (len(b) == 2 or a[0] == b[0]):
            return (*a[:-1], b[-1])
        gradient = out is not None and len(b) == 3 and tuple(out.shape) == (a[2], b[2])
        if gradient and a[:2] == b[:2]:
            return (a[2], b[2])
    raise InvalidArgumentError(
        f"{name}: A is {tuple(A.shape)}, B is {tuple(B.shape)}, "
        f"transposed: {transposed_A}, {transposed_B}",
        "They must be (rows, inner) and (inner, columns), A perhaps or both with a batch in front.",
        "Swap the last two dimensions of one of them, or say that it is transposed.",
    )


def _warn(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated. {instead}", FutureWarning, stacklevel=3)
