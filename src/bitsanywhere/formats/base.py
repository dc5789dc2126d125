"""What every format shares: the types, and how a real number becomes a code.

4-bit: a value is scaled by its block's absmax, ``s = x * (1 / absmax)``, and its interval is the
number of thresholds below it, ``#{t : s > t}`` (a tie goes to the lower value; NaN to the last
interval). Thresholds are the midpoints of neighbouring values, rounded to float32.

8-bit: ``s`` is first rounded to one of 65536 grid points, ``k = floor((s + 1) * 32767.5 + 0.5)``,
then the nearest code to ``k / 32767.5 - 1`` is taken (a tie goes to the lower code). The grid is
how bitsandbytes' CPU kernels choose codes, found by measuring them: no difference in 3.2 million
values of the dynamic map. One exception here: an exact zero keeps the code nearest to zero, where
the grid, which has no point at zero, would turn it into 1.5e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

GRID_SCALE = 32767.5
GRID_POINTS = 65536
BLOCKSIZES_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)
BLOCKSIZES_8BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Format4:
    """A 4-bit format: 16 values in units of the block's absmax.

    Attributes:
        name: as it stands in checkpoints.
        values: value of each code, indexed by code.
        order: codes by ascending value; ``order[i]`` is the code of interval ``i``.
    """

    name: str
    values: tuple[float, ...]
    order: tuple[int, ...]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """15 ascending float32 thresholds; interval of ``s`` is ``#{t : s > t}``."""
        ascending = [self.values[code] for code in self.order]
        return tuple(as_float32((low + high) / 2) for low, high in pairwise(ascending))

    def tensor(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The codebook as float32 of shape (16,)."""
        return torch.tensor(self.values, dtype=torch.float32, device=device)


def as_float32(value: float) -> float:
    """``value`` rounded to float32."""
    return float(torch.tensor(value, dtype=torch.float64, device="cpu").float())


def codebook8(values: Sequence[float]) -> torch.Tensor:
    """``values`` sorted, zeros filling up to 256, as a float32 tensor of shape (256,)."""
    filled = sorted([*values, *[0.0] * (256 - len(values))])
    return torch.tensor(filled, dtype=torch.float32, device="cpu")


def grid_codes(code: torch.Tensor) -> torch.Tensor:
    """Code of each of the 65536 grid points for an ascending 256-entry codebook.

    Args:
        code: float32 of shape (256,), ascending.

    Returns:
        uint8 of shape (65536,) on the device of ``code``.
    """
    midpoints = _midpoints(code)
    grid = torch.arange(GRID_POINTS, dtype=torch.float64, device=midpoints.device) / GRID_SCALE - 1
    return torch.bucketize(grid, midpoints).to(torch.uint8).to(code.device)


def zero_code(code: torch.Tensor) -> torch.Tensor:
    """The code nearest to zero, as a uint8 tensor of shape (); the lower one on a tie."""
    midpoints = _midpoints(code)
    found = torch.searchsorted(midpoints, midpoints.new_zeros(1))
    return found.to(torch.uint8)[0].to(code.device)


def _midpoints(code: torch.Tensor) -> torch.Tensor:
    """Midpoints of neighbours in float64, on the CPU where the device has no float64 (MPS)."""
    wide = (code.cpu() if code.device.type == "mps" else code).double()
    return (wide[1:] + wide[:-1]) / 2


@lru_cache(maxsize=64)
def cached_tensor(format4: Format4, device: torch.device) -> torch.Tensor:
    """A shared codebook tensor on ``device``; never written to."""
    with torch.inference_mode(False):
        return format4.tensor(device)
