"""int8_mixed_scaled_mm: the mixed-precision decomposition of LLM.int8() (equation 8).

    out = int8_scaled_mm(CA, CB, SCA, SCB, bias) + A[:, outliers] @ dequantize(CB[:, outliers]).T

CA holds zeros in the outlier columns. The first summand is rounded to A's dtype and so is the
dequantized weight before they meet; a kernel may add in float32 instead, the more exact order.
"""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.ops import checks, registry
from bitsanywhere.ops.int8_linear_matmul import check_codes
from bitsanywhere.ops.int8_mm_dequant import check_statistics
from bitsanywhere.ops.int8_scaled_mm import OP as int8_scaled_mm
from bitsanywhere.ops.int8_vectorwise_dequant import int8_vectorwise_dequant_torch
from bitsanywhere.ops.int8_vectorwise_quant import check_rows, row_count

SCHEMA = (
    "(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, Tensor? outlier_cols=None, "
    "Tensor? bias=None) -> (Tensor, Tensor?)"
)


def check(
    A: torch.Tensor,
    CA: torch.Tensor,
    CB: torch.Tensor,
    SCA: torch.Tensor,
    SCB: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """Allowed: float A (..., K), its codes and statistics, int8 CB (N, K) and its statistics."""
    check_rows("int8_mixed_scaled_mm", A)
    check_codes("int8_mixed_scaled_mm", "CA", CA, "CB", CB)
    if A.shape != CA.shape:
        raise InvalidArgumentError(
            f"int8_mixed_scaled_mm: A is {tuple(A.shape)}, CA is {tuple(CA.shape)}",
            "CA holds the codes of A.",
            "Pass what int8_vectorwise_quant(A, threshold) returned.",
        )
    check_statistics("int8_mixed_scaled_mm", row_count(A), CB.shape[0], SCA, SCB, None, bias)
    if outlier_cols is not None:
        checks.check_dtype("int8_mixed_scaled_mm", "outlier_cols", outlier_cols, torch.int64)
    checks.check_same_device(
        "int8_mixed_scaled_mm", A, CA=CA, SCA=SCA, SCB=SCB, outlier_cols=outlier_cols, bias=bias
    )


def fake(
    A: torch.Tensor,
    CA: torch.Tensor,
    CB: torch.Tensor,
    SCA: torch.Tensor,
    SCB: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., N) in A's dtype, and A's outlier columns (rows, outliers), or (0,) without any."""
    out = A.new_empty((*A.shape[:-1], CB.shape[0]))
    if outlier_cols is None:
        return out, A.new_empty((0,))
    return out, A.new_empty((row_count(A), outlier_cols.shape[0]))


def int8_mixed_scaled_mm_torch(
    A: torch.Tensor,
    CA: torch.Tensor,
    CB: torch.Tensor,
    SCA: torch.Tensor,
    SCB: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8_scaled_mm by the best there is for the device, the outliers in plain torch."""
    out = int8_scaled_mm.trusted(CA, CB, SCA, SCB, bias, A.dtype)
    if outlier_cols is None:
        return out, A.new_empty((0,))
    sub_a = A.reshape(row_count(A), A.shape[-1])[:, outlier_cols]
    if outlier_cols.numel() == 0:
        return out, sub_a
    sub_b = int8_vectorwise_dequant_torch(CB[:, outlier_cols], SCB).to(A.dtype)
    whole = out.view(len(sub_a), len(sub_b)).addmm(sub_a, sub_b.t())
    return whole.view(out.shape), sub_a


OP = registry.register(
    "int8_mixed_scaled_mm", SCHEMA, check=check, fake=fake, reference=int8_mixed_scaled_mm_torch
)
