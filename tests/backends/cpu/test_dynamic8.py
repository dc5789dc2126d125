"""The codes of the dynamic map by arithmetic against the tables, over every grid point."""

from __future__ import annotations

import pytest
import torch
from numba import njit

from bitsanywhere.backends.cpu import dynamic8, simd
from bitsanywhere.backends.cpu.machine import host, levels_of
from bitsanywhere.formats import GRID_POINTS, create_dynamic_map, grid_codes, zero_code

LEVELS = [level for level in levels_of(host().level) if level != "generic"]


def encode(level: str, signed: bool, values: torch.Tensor) -> torch.Tensor:
    """Codes of scaled float32 values, a multiple of 16 of them."""
    find, load, store = dynamic8.encoder(level, signed), simd.load_f32x16, simd.store

    @njit
    def run(source, to, count):
        for i in range(0, count, 16):
            store(to + i, find(load(source + 4 * i)))

    codes = torch.empty(values.numel(), dtype=torch.uint8)
    run(values.data_ptr(), codes.data_ptr(), values.numel())
    return codes


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_every_grid_point(level, signed):
    points = torch.arange(GRID_POINTS)
    values = (points.double() / 32767.5 - 1).float()
    assert torch.equal(((values + 1) * 32767.5 + 0.5).floor().long(), points)
    assert torch.equal(encode(level, signed, values), grid_codes(create_dynamic_map(signed)))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_zero_nan_and_the_ends(level, signed):
    table = create_dynamic_map(signed)
    codes, zero = grid_codes(table).tolist(), int(zero_code(table))
    tiny, above = 1e-30, 1 + 2**-23
    cases = [
        (0.0, zero), (-0.0, zero), (tiny, codes[32768]), (-tiny, codes[32768]), (1.0, codes[-1]),
        (-1.0, codes[0]), (above, codes[-1]), (-above, codes[0]), (float("nan"), codes[0]),
        *[(0.0, zero)] * 7,
    ]  # fmt: skip
    values, expected = zip(*cases, strict=True)
    assert encode(level, signed, torch.tensor(values)).tolist() == list(expected)
