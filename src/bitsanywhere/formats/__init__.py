"""What a number means: one scheme, one file, data only."""

from __future__ import annotations

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.formats.base import (
    BLOCKSIZES_4BIT,
    BLOCKSIZES_8BIT,
    GRID_POINTS,
    GRID_SCALE,
    Format4,
    cached_tensor,
    grid_codes,
    zero_code,
)
from bitsanywhere.formats.dynamic8 import create_dynamic_map
from bitsanywhere.formats.fp4 import FP4
from bitsanywhere.formats.fp8 import create_fp8_map
from bitsanywhere.formats.linear8 import create_linear_map
from bitsanywhere.formats.nf4 import NF4
from bitsanywhere.formats.normal import create_normal_map

FORMATS4 = {"nf4": NF4, "fp4": FP4}


def codebook4(quant_type: str) -> Format4:
    """The 4-bit format called ``quant_type``.

    Raises:
        InvalidArgumentError: for any other name than "nf4" and "fp4".
    """
    found = FORMATS4.get(quant_type)
    if found is None:
        raise InvalidArgumentError(f"quant_type is {quant_type!r}", "Allowed are 'nf4' and 'fp4'.")
    return found


__all__ = [
    "BLOCKSIZES_4BIT",
    "BLOCKSIZES_8BIT",
    "FORMATS4",
    "FP4",
    "GRID_POINTS",
    "GRID_SCALE",
    "NF4",
    "Format4",
    "cached_tensor",
    "codebook4",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "grid_codes",
    "zero_code",
]
