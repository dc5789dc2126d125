"""int8_linear_matmul: out = A @ B.T of int8 matrices, exact in int32."""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.ops import checks, registry

SCHEMA = "(Tensor A, Tensor B) -> Tensor"
OUT_SCHEMA = "(Tensor A, Tensor B, Tensor(a!) out) -> ()"
# This many products of two int8 sum to at most 2^24, which float32 holds exactly.
_EXACT = 1024


def check(A: torch.Tensor, B: torch.Tensor) -> None:
    """Allowed: int8 A of shape (..., K) and int8 B of shape (N, K)."""
    check_codes("int8_linear_matmul", "A", A, "B", B)


def check_codes(op: str, name_a: str, A: torch.Tensor, name_b: str, B: torch.Tensor) -> None:
    """Raises unless A is int8 (..., K) and B int8 (N, K), both on one device."""
    checks.check_dtype(op, name_a, A, torch.int8)
    checks.check_dtype(op, name_b, B, torch.int8)
    check_sizes(op, name_a, A, name_b, B)
    checks.check_same_device(op, A, **{name_b: B})


def check_sizes(op: str, name_a: str, A: torch.Tensor, name_b: str, B: torch.Tensor) -> None:
    """Raises unless A is (..., K) and B is (N, K)."""
    if B.dim() != 2 or A.dim() == 0 or A.shape[-1] != B.shape[1]:
        raise InvalidArgumentError(
            f"{op}: {name_a} is {tuple(A.shape)}, {name_b} is {tuple(B.shape)}",
            f"{name_a} must be (..., K) and {name_b} (N, K).",
            f"{name_b} is the weight as it is stored, not its transpose.",
        )


def fake(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """int32 of shape (..., N)."""
    return A.new_empty((*A.shape[:-1], B.shape[0]), dtype=torch.int32)


def int8_linear_matmul_torch(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The op in plain torch: float32 products of pieces so short that they are exact."""
    out = torch.zeros((*A.shape[:-1], B.shape[0]), dtype=torch.int32, device=A.device)
    for start in range(0, A.shape[-1], _EXACT):
        piece = slice(start, start + _EXACT)
        out += torch.nn.functional.linear(A[..., piece].float(), B[:, piece].float()).int()
    return out


OP = registry.register(
    "int8_linear_matmul",
    SCHEMA,
    check=check,
    fake=fake,
    reference=int8_linear_matmul_torch,
    out_schema=OUT_SCHEMA,
)
