"""The cases that tests and benchmarks share: op x shape x dtype x tolerance.

Tolerances are relative RMS errors against float64: ||out - ref|| / ||ref||.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Gemm:
    """out (M, N) = A (M, K) @ dequantize(B).T, B of shape (N, K)."""

    m: int
    n: int
    k: int
    dtype: torch.dtype = torch.bfloat16
    blocksize: int = 64
    quant_type: str = "nf4"
    nested: bool = False
    bias: bool = False

    @property
    def tolerance(self) -> float:
        """Allowed relative RMS error against float64."""
        return TOLERANCE[self.dtype]

    def __str__(self) -> str:
        parts = [f"{self.m}x{self.n}x{self.k}", str(self.dtype).removeprefix("torch.")]
        parts += [self.quant_type, f"bs{self.blocksize}"]
        return "-".join(parts + ["nested"] * self.nested + ["bias"] * self.bias)


def gemm_cases() -> list[Gemm]:
    """Correctness: every M class, odd sizes, blocks that span rows, all dtypes and formats."""
    cases = [
        Gemm(m, n, k, dtype)
        for m, (n, k), dtype in product(
            (1, 2, 7, 8, 16, 17, 33, 64, 65, 130),
            ((256, 512), (200, 320)),
            (torch.float32, torch.float16, torch.bfloat16),
        )
    ]
    cases += [
        Gemm(m, n, k, dtype)
        for m, (n, k), dtype in product(
            (1, 3, 16, 70),
            ((1, 64), (3, 96), (129, 65), (40, 7), (5, 1), (16, 100), (33, 1000)),
            (torch.float32, torch.float16, torch.bfloat16),
        )
    ]
    cases += [
        Gemm(m, 136, 640, torch.bfloat16, blocksize, quant_type, nested, bias)
        for m, blocksize, quant_type, nested, bias in product(
            (1, 12, 48),
            (32, 64, 128, 256, 512, 1024, 2048, 4096),
            ("nf4", "fp4"),
            (False, True),
            (False, True),
        )
    ]
    return cases


CODEC_SHAPES = ((1,), (5,), (64,), (1000,), (16, 16), (33, 65), (7, 48), (128, 257), (2, 3, 129))
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
