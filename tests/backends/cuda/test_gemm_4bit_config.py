"""Configurations of gemm_4bit: possible on every chip, for every shape."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from bitsanywhere.backends.cuda.gemm_4bit_config import choose, every_config
from bitsanywhere.backends.cuda.gemm_4bit_kernels import (
    DequantizeConfig,
    GeneralConfig,
    TensorConfig,
    WgmmaConfig,
)
from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.targets import known
from tests.gpu.test_gemm import LARGE

NAMES = (
    "t4", "a100", "rtx3090", "orin-nano", "agx-orin", "l4", "rtx4090", "h100", "b200", "b300",
    "thor", "rtx5090", "gb10",
)  # fmt: skip
SHAPES = [
    (m, n, k)
    for m in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 5000)
    for n, k in (
        (1, 32), (16, 64), (100, 999), (512, 1000), (999, 4096), (4096, 4096), (4096, 4128),
        (4096, 11008), (11008, 4096), (6144, 4096), (8448, 4096), (16896, 4096), (28672, 8192),
        (28672, 8224), (4480, 32768), (152064, 8192), (5120, 5120), (8192, 28672), (14336, 4096),
        (12288, 4096), (10240, 8192),
    )
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
def test_every_choice_is_possible_and_compiled(name, dtype, blocksize):
    target = known(name)
    sources = {config.source(dtype) for config in every_config(dtype, target)}
    for (m, n, k), nested in product(SHAPES, (False, True)):
        config = choose(m, n, k, dtype, blocksize, target, nested=nested)
        if isinstance(config, DequantizeConfig):
            assert m > 16
            continue
        assert config.source(dtype) in sources, "not in kernel packs"
        assert config.threads <= 1024
        if isinstance(config, GeneralConfig):
            assert config.grid[0] * 16 >= n
            assert config.grid[1] * config.m_rows >= m
            continue
        assert k % config.chunk == 0
        assert blocksize >= config.chunk
        assert config.shared_memory <= target.shared_memory
        steps = -(-n // config.tile_n) * -(-m // config.tile_m) * -(-k // config.step_k)
        # Every block has work, and an arrival counter.
        assert 1 <= config.grid <= min(steps, 4096)
        if isinstance(config, WgmmaConfig):
            assert target.arch == "sm_90"
        else:
            assert config.chunk % 16 == 0
            assert config.step_k % (config.chunk * config.warps_k) == 0
            # All producers copy the same part of a row, of the weight and of activations.
            assert config.producers * 32 % (config.step_k // 8) == 0
            assert config.tile_n % (config.producers * 32 // (config.step_k // 32)) == 0


def test_tensor_cores_wherever_they_can_serve():
    assert isinstance(choose(1, 4096, 4096, torch.float16, 64, known("t4")), TensorConfig)
    assert isinstance(choose(1, 4096, 4096, torch.bfloat16, 64, known("t4")), GeneralConfig)
    assert isinstance(choose(1, 4096, 4096, torch.bfloat16, 64, known("orin-nano")), TensorConfig)
    assert isinstance(choose(1, 4096, 4096, torch.float32, 64, known("h100")), GeneralConfig)
    assert isinstance(choose(64, 28672, 8192, torch.bfloat16, 64, known("h100")), WgmmaConfig)


@pytest.mark.parametrize(
    ("m", "n", "k", "nested", "tile", "blocks_a_tile"),
    [
        (1, 4096, 4096, False, 32, 1),
        (8, 4096, 4096, False, 128, 4),
        (8, 4096, 11008, False, 64, 2),
        (8, 11008, 4096, False, 96, 1),
        (8, 14336, 4096, False, 128, 1),
        (16, 28672, 8192, False, 224, 1),
        (1, 28672, 8192, True, 112, 0.5),
        (8, 28672, 8192, True, 112, 0.5),
        (8, 14336, 4096, True, 112, 1),
        (16, 14336, 4096, True, 128, 1),
        (16, 16384, 16384, True, 256, 2),
        (8, 12288, 4096, True, 96, 1),
    ],
)
def test_tiles_come_out_even_where_some_do(m, n, k, nested, tile, blocks_a_tile):
    config = choose(m, n, k, torch.bfloat16, 64, known("h100"), nested=nested)
    assert isinstance(config, TensorConfig)
    assert config.tile_n == tile
    assert config.grid == -(-n // tile) * blocks_a_tile


@pytest.mark.parametrize(("n", "k", "tile"), [(10240, 8192, 128), (5120, 5120, 192)])
@pytest.mark.parametrize("nested", [False, True])
def test_where_no_tiles_come_out_even_all_multiprocessors_share_them(n, k, tile, nested):
    config = choose(1, n, k, torch.bfloat16, 64, known("h100"), nested=nested)
    assert isinstance(config, TensorConfig)
    assert (config.tile_n, config.grid) == (tile, 132)


def test_even_tiles_are_not_exchanged_for_others():
    config = choose(8, 4096, 11008, torch.bfloat16, 64, known("orin-nano"))
    assert isinstance(config, TensorConfig)
    assert (config.tile_n, config.grid) == (128, 8)


@pytest.mark.parametrize(
    ("m", "n", "tile_m", "tile_n"),
    [
        (256, 14336, 256, 128),
        (256, 4096, 128, 64),
        (256, 11008, 128, 192),
        (384, 11008, 128, 128),
        (768, 4096, 128, 192),
    ],
)
def test_tiles_of_larger_batches(m, n, tile_m, tile_n):
    config = choose(m, n, 4096, torch.bfloat16, 64, known("h100"))
    assert isinstance(config, WgmmaConfig)
    assert (config.tile_m, config.tile_n) == (tile_m, tile_n)
    assert config.grid >= 0.84 * known("h100").sm_count


def test_the_large_cases_on_a_gpu_run_every_product_of_hopper():
    target = known("h100")

    def kernels(configs) -> set[KernelSource]:
        return {
            config.source(torch.bfloat16)
            for config in configs
            if isinstance(config, WgmmaConfig)
            or (isinstance(config, TensorConfig) and config.chunk == 64)
        }

    run = kernels(
        choose(*shape, torch.bfloat16, 64, target, nested=nested)
        for shape, nested in product(LARGE, (False, True))
    )
    assert run == kernels(every_config(torch.bfloat16, target))


def test_an_unaligned_weight_is_read_bytewise():
    config = choose(1, 4096, 4096, torch.float16, 64, known("h100"), aligned=False)
    assert isinstance(config, GeneralConfig)
    assert not config.grouped


def test_a_choice_can_be_printed():
    assert "stages" in repr(choose(1, 4096, 4096, torch.float16, 64, known("h100")))
