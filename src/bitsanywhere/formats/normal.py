"""Maps of quantiles of the standard normal (QLoRA, Dettmers et al. 2023, section 3)."""

from __future__ import annotations

from statistics import NormalDist

import torch

from bitsanywhere.formats.base import codebook8


def create_normal_map(offset: float = 0.9677083, use_extra_value: bool = True) -> torch.Tensor:
    """The NormalFloat-4 values, scaled to [-1, 1], with zeros up to 256 entries.

    Args:
        offset: the outermost quantile, strictly between 0.5 and 1.
        use_extra_value: eight values above zero (15 without the zero) instead of seven.

    Returns:
        float32 tensor of shape (256,), ascending.
    """
    positive = _quantiles(offset, 8 if use_extra_value else 7)
    negative = [-value for value in _quantiles(offset, 7)]
    values = codebook8([*positive, *negative])
    return values / values.max()


def _quantiles(offset: float, count: int) -> list[float]:
    levels = torch.linspace(offset, 0.5, count + 1, dtype=torch.float32, device="cpu")[:-1].tolist()
    return [NormalDist().inv_cdf(level) for level in levels]
