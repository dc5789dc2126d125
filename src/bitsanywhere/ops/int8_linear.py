"""int8_linear: the whole forward of a linear layer with an int8 weight (LLM.int8(), section 3).

    CA, SCA, outliers = int8_vectorwise_quant(A, threshold)
    out = int8_mixed_scaled_mm(A, CA, CB, SCA, SCB, outliers, bias)

One op, so that a kernel can fuse the steps and need not tell the host how many outliers there are.
"""

from __future__ import annotations

import torch

from bitsanywhere.errors import DtypeError
from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.int8_linear_matmul import check_sizes
from bitsanywhere.ops.int8_mixed_scaled_mm import OP as int8_mixed_scaled_mm
from bitsanywhere.ops.int8_vectorwise_quant import OP as int8_vectorwise_quant
from bitsanywhere.ops.int8_vectorwise_quant import check_rows

SCHEMA = "(Tensor A, Tensor CB, Tensor SCB, float threshold, Tensor? bias) -> Tensor"


def check(
    A: torch.Tensor,
    CB: torch.Tensor,
    SCB: torch.Tensor,
    threshold: float,
    bias: torch.Tensor | None,
) -> None:
    """Allowed: float A (..., K), int8 CB (N, K), float32 SCB (N,), bias (N,) of A's dtype."""
    if _is_right(A, CB, SCB, bias):
        return
    check_rows("int8_linear", A)
    check_weight("int8_linear", CB, SCB)
    check_sizes("int8_linear", "A", A, "CB", CB)
    checks.check_same_device("int8_linear", A, CB=CB, SCB=SCB, bias=bias)
    if bias is not None:
        checks.check_numel("int8_linear", "bias", bias, CB.shape[0], "one an output")
        if bias.dtype != A.dtype:
            raise DtypeError(
                f"int8_linear: bias is {bias.dtype}",
                f"It must be A's {A.dtype}.",
                "Convert it: bias.to(A.dtype).",
            )


def _is_right(
    A: torch.Tensor, CB: torch.Tensor, SCB: torch.Tensor, bias: torch.Tensor | None
) -> bool:
    """Whether `check` would find nothing, told in a quarter of its time."""
    a, weight, dtype, device = A.shape, CB.shape, A.dtype, A.device
    return (
        len(weight) == 2
        and len(a) > 0
        and a[-1] == weight[1]
        and dtype in checks.FLOATS
        and CB.dtype == torch.int8
        and SCB.dtype == torch.float32
        and SCB.numel() == weight[0]
        and CB.device == device
        and SCB.device == device
        and (
            bias is None
            or (bias.dtype == dtype and bias.numel() == weight[0] and bias.device == device)
        )
    )


def check_weight(op: str, CB: torch.Tensor, SCB: torch.Tensor) -> None:
    """Raises unless CB is int8 and SCB its float32 statistics."""
    checks.check_dtype(op, "CB", CB, torch.int8)
    checks.check_dtype(op, "SCB", SCB, torch.float32)
    checks.check_numel(op, "SCB", SCB, CB.shape[0] if CB.dim() else 1, "one a row of CB")


def fake(A: torch.Tensor, CB: torch.Tensor, *rest: object) -> torch.Tensor:
    """A tensor of A's dtype and shape (..., N)."""
    return A.new_empty((*A.shape[:-1], CB.shape[0]))


def int8_linear_torch(
    A: torch.Tensor,
    CB: torch.Tensor,
    SCB: torch.Tensor,
    threshold: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The two ops one after the other, each by the best there is for the device."""
    codes, stats, outliers = int8_vectorwise_quant.trusted(A, threshold)
    return int8_mixed_scaled_mm.trusted(A, codes, CB, stats, SCB, outliers, bias)[0]


OP = registry.register("int8_linear", SCHEMA, check=check, fake=fake, reference=int8_linear_torch)
