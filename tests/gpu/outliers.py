"""Activations with outlier columns, for the tests of LLM.int8()."""

from __future__ import annotations

import torch


def activations(m: int, k: int, dtype: torch.dtype, outliers: int = 0, seed: int = 0):
    """Normal values below 6 in magnitude, and some columns with a few planted ones above."""
    torch.manual_seed(seed)
    x = torch.randn(m, k, device="cuda").clamp_(-5.5, 5.5)
    columns = torch.randperm(k, device="cuda")[:outliers].sort().values
    for column in columns.tolist():
        rows = torch.randperm(m, device="cuda")[: max(1, m // 3)]
        sign = torch.randn(len(rows), device="cuda").sign()
        x[rows, column] = (20 + 40 * torch.rand(len(rows), device="cuda")) * sign
    return x.to(dtype), columns
