"""Configurations of the int8 kernels: possible on every chip, for every shape, and compiled."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere.backends.cuda import (
    dequantize_blockwise,
    int8_double_quant,
    int8_gemm,
    int8_vectorwise_quant,
)
from bitsanywhere.backends.cuda.int8_gemm_config import (
    RAW,
    LibraryConfig,
    StreamConfig,
    WgmmaConfig,
    choose,
)
from bitsanywhere.targets import known

NAMES = (
    "t4", "a100", "rtx3090", "orin-nano", "agx-orin", "l4", "rtx4090", "h100", "b200", "b300",
    "thor", "rtx5090", "gb10",
)  # fmt: skip
SHAPES = [
    (m, n, k)
    for m in (1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 257, 512, 513, 5000, 70000)
    for n, k in (
        (1, 1), (1, 16), (16, 0), (33, 77), (72, 1000), (4096, 4096), (4096, 14336),
        (14336, 4096), (28672, 8192), (152064, 8192), (4095, 4096), (4096, 4100),
    )
]  # fmt: skip


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_choice_is_possible_and_compiled(name, aligned):
    target = known(name)
    sources = set(int8_gemm.sources(target))
    for m, n, k in SHAPES:
        config = choose(m, n, k, target, aligned)
        assert config == choose(m, n, k, target, aligned)
        if isinstance(config, LibraryConfig):
            # What torch._int_mm asks for.
            assert m > 16
            assert n % 8 == k % 8 == 0 < k
            assert aligned
            continue
        assert all(config.source(dtype) in sources for dtype in (torch.bfloat16, RAW))
        assert config.threads <= 1024
        assert config.grid < 2**31
        if isinstance(config, WgmmaConfig):
            assert target.arch == "sm_90"
            assert aligned
            assert k % 16 == 0
            assert config.grid * config.tile_m * config.tile_n >= m * n
            # Every block fetches whole groups of 8 rows, which the swizzle wants.
            assert all(rows % 8 == 0 < rows <= 256 for rows in (config.tile_m, config.tile_n))
            blocks = 1 if config.spread else config.blocks_a_sm
            assert (config.shared_memory + 1024) * blocks <= target.shared_memory + 1024
            if config.spread:
                assert config.grid <= target.sm_count
                assert 2 * config.dynamic_bytes > target.shared_memory - 1024
        else:
            assert config.vectors == (aligned and k % 16 == 0 < k)
            # No block without a tile: each has to count itself as done.
            assert 1 <= config.grid <= -(-m // config.tile_m) * -(-n // config.tile_n)


def test_what_serves_whom():
    h100, orin, t4 = map(known, ("h100", "orin-nano", "t4"))
    assert isinstance(choose(1, 4096, 4096, h100), StreamConfig)
    assert isinstance(choose(2048, 4096, 4096, h100), WgmmaConfig)
    assert isinstance(choose(2048, 4096, 4096, orin), LibraryConfig)
    assert isinstance(choose(2048, 4096, 4096, t4), StreamConfig)
    assert isinstance(choose(2048, 4096, 4096, h100, aligned=False), StreamConfig)
    assert isinstance(choose(2048, 4096, 1000, h100), LibraryConfig)
    assert "grid" in repr(choose(1, 4096, 4096, h100))


@pytest.mark.parametrize(
    ("m", "n", "tile", "spread"),
    [
        (64, 4096, (64, 32), True),
        (64, 14336, (64, 64), False),
        (128, 4096, (64, 64), True),
        (128, 14336, (128, 112), True),
        (256, 4096, (128, 64), True),
        (256, 14336, (256, 112), True),
        (2048, 4096, (256, 128), False),
        (2048, 14336, (256, 128), False),
    ],
)
def test_tiles_of_common_shapes(m, n, tile, spread):
    config = choose(m, n, 4096, known("h100"))
    assert isinstance(config, WgmmaConfig)
    assert (config.tile_m, config.tile_n) == tile
    assert config.spread == spread


@pytest.mark.parametrize("name", NAMES)
def test_elements_to_dequantize_are_covered(name):
    target = known(name)
    for count in (1, 1 << 16, 1 << 20, 1 << 24, 1 << 34):
        config = dequantize_blockwise.choose(count, target)
        assert config.threads in (512, 1024)
        # A block at least has one tile a warp, and no chip is left half empty for large blocks.
        assert (config.blocks - 1) * config.threads // 32 * config.tile < count
        assert config.threads == 512 or config.blocks >= target.sm_count


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_rows_to_quantize_are_covered(name, whole):
    target = known(name)
    sources = int8_vectorwise_quant.sources(target)
    for m in (1, 2, 100, 5000, 1 << 20):
        for k in (1, 8, 77, 4096, 14336, 150001):
            config = int8_vectorwise_quant.choose(m, k, whole, target)
            assert config.threads % 32 == 0
            assert 32 <= config.threads <= 512
            assert 1 <= config.grid <= m
            assert config.source(torch.float16) in sources
            if config.vectors:
                assert whole
                assert config.vectors * 8 * config.threads >= k


@pytest.mark.parametrize("name", NAMES)
def test_columns_to_quantize_are_covered(name):
    for m in (1, 100, 1 << 20):
        for k in (1, 4096, 150001):
            across, down = int8_double_quant.choose(m, k, known(name))
            assert across * 256 >= k
            assert 1 <= down < 1 << 16
