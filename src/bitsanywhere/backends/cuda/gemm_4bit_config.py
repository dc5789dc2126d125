"""How gemm_4bit and gemv_4bit are run: a pure function of shape, dtype and chip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import torch

from bitsanywhere.backends.cuda.gemm_4bit_kernels import (
    Config,
    DequantizeConfig,
    GeneralConfig,
    KernelConfig,
    TensorConfig,
    WgmmaConfig,
)
from bitsanywhere.targets import Target


def choose(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    blocksize: int,
    target: Target,
    aligned: bool = True,
    nested: bool = False,
) -> Config:
    """The way to multiply (m, k) activations with an (n, k) weight on a chip.

    The numbers below were measured on an H100 and an H200 (weights of 2^24, 2^26 and 2^28
    elements): up to so many batch rows, decoding weights in the kernel beats decoding them once
    into memory.

    Args:
        aligned: the packed weight's address is a multiple of 16.
        nested: the scales are quantized too.
    """
    tensor_cores = dtype == torch.float16 or (dtype == torch.bfloat16 and target.major >= 8)
    chunk = 64 if blocksize >= 64 and k % 64 == 0 else 32
    if tensor_cores and aligned and k % 32 == 0 and k > 0:
        small = n * k < 1 << 25
        if target.arch == "sm_90" and m > 16:
            possible = n % 2 == 0 and m <= 1024
            return _wgmma_config(m, n, k, chunk, target) if possible else DequantizeConfig()
        if m <= 64 or (m <= 128 and not small and target.major >= 8):
            return _tensor_config(m, n, k, chunk, target, nested)
    if m <= 16:
        return _general_config(m, n, aligned and k % 8 == 0)
    return DequantizeConfig()


def every_config(dtype: torch.dtype, target: Target) -> list[KernelConfig]:
    """Configurations that stand for all that `choose` may return, as far as kernels go."""
    shapes = [
        (m, n, k)
        for m in (1, 8, 16, 32, 64, 128, 256)
        for n in (4096, 32768, *(rows * target.sm_count for rows in (32, 64, 96, 128, 224)))
        for k in (64, 4096, 4128, 8192, 8224, 11008, 32768, 1000, 999)
    ]
    configs = [
        choose(*shape, dtype, 64, target, nested=nested)
        for shape in shapes
        for nested in (False, True)
    ]
    kernels = [config for config in configs if not isinstance(config, DequantizeConfig)]
    if target.arch == "sm_90" and dtype != torch.float32:
        kernels += [config for chunk in (64, 32) for _, config in _wgmma_shapes(chunk, target)]
    return kernels


def _general_config(m: int, n: int, grouped: bool) -> GeneralConfig:
    m_rows = 1 if m == 1 else 8
    return GeneralConfig(
        m_rows=m_rows, rows=2, grouped=grouped, grid=(-(-n // 16), -(-m // m_rows))
    )


class _WgmmaShape(NamedTuple):
    """A tile of gemm_4bit_wgmma.cuh, and what it was measured to take on an H200.

    Attributes:
        m_tiles, warpgroups, step_k: as WgmmaConfig has them.
        nanoseconds: of a tile, an element of K.
        shared: nanoseconds more where blocks share tiles and add up their sums; half of that counts
            where every tile is shared by equally many.
    """

    m_tiles: int
    warpgroups: int
    step_k: int
    nanoseconds: float
    shared: float

    def time(self, config: WgmmaConfig, m: int, n: int, k: int) -> float:
        """Nanoseconds that a product takes, but for those of every launch."""
        tiles, blocks = _tiles(config, m, n), config.grid
        extra = 0.0
        if tiles % blocks:
            extra = self.shared / 2 if blocks % tiles == 0 else self.shared
        return tiles / blocks * k * self.nanoseconds + extra


_WGMMA = (
    _WgmmaShape(4, 4, 256, 7.8, 14e3),
    _WgmmaShape(4, 2, 256, 5.2, 5e3),
    _WgmmaShape(8, 4, 256, 8.7, 18e3),
    _WgmmaShape(8, 2, 256, 5.1, 6e3),
    _WgmmaShape(16, 3, 128, 10.6, 13e3),
    _WgmmaShape(16, 2, 128, 7.4, 10e3),
    _WgmmaShape(16, 1, 256, 3.9, 14e3),
    _WgmmaShape(32, 2, 64, 11.0, 18e3),
)


@cache
def _wgmma_shapes(chunk: int, target: Target) -> tuple[tuple[_WgmmaShape, WgmmaConfig], ...]:
    """Those that kernels are made for, with configurations of which the grid is not known yet."""
    found = []
    for shape in _WGMMA:
        # Chunks of 32 are rare, and not worth kernels of their own for each shape.
        if chunk == 32 and any(known.m_tiles == shape.m_tiles for known, _ in found):
            continue
        m_tiles, warpgroups, step_k, *_ = shape
        config = _fitted(WgmmaConfig(m_tiles, warpgroups, chunk, step_k, stages=8, grid=1), target)
        if config is None:
            raise AssertionError(f"{shape} does not fit {target}.")
        found.append((shape, config))
    return tuple(found)


def _wgmma_config(m: int, n: int, k: int, chunk: int, target: Target) -> WgmmaConfig:
    """The one that should be fastest, of the tiles of 32 or of 64 batch rows where those hold the
    batch, else of those of 128 and 256."""
    suitable = (4,) if m <= 32 else (8,) if m <= 64 else (16, 32)
    configs = [
        (shape, config._replace(grid=_grid(config, m, n, k, target.sm_count)))
        for shape, config in _wgmma_shapes(chunk, target)
        if shape.m_tiles in suitable
    ]
    _, fastest = min(configs, key=lambda pair: pair[0].time(pair[1], m, n, k))
    return fastest


Wish = dict[str, int]


def _tensor_config(
    m: int, n: int, k: int, chunk: int, target: Target, nested: bool
) -> TensorConfig:
    """The first wish that fits the chip's shared memory, with as many stages as do.

    For few batch rows others are taken if they come out even: on an H200 up to a fifth faster than
    shares that begin and end anywhere.
    """
    m_tiles = 1 if m <= 8 else 2 if m <= 16 and chunk == 64 else 4 if m <= 32 or chunk == 32 else 8
    base = TensorConfig(
        m_tiles=m_tiles, row_tiles=1, warps=8, warps_k=1, producers=4, chunk=chunk,
        batch_rows=1 if m == 1 else 8 * m_tiles, step_k=256, stages=8, table_stride=128, grid=1,
    )  # fmt: skip
    few = _Wishes()
    # Chunks of 32 are rare, and not worth kernels of their own for each shape.
    if m_tiles <= 2 and chunk == 64 and target.shared_memory >= 160 * 1024:
        few = _few_rows(m, n * k, nested, target.shared_memory >= 200 * 1024)
    wishes = list(few.wishes)
    if m_tiles == 1:
        wishes += [{"step_k": 512, "warps_k": 2}]
    elif m_tiles == 4 and n * k >= 1 << 27 and chunk == 64:
        wishes += [{"row_tiles": 2}]
    elif m_tiles == 8:
        wishes += [{"step_k": 128}]
    small = {"producers": 1, "step_k": 128}
    wishes += [
        {},
        {"step_k": 128},
        {**small, "warps": 4},
        {**small, "warps": 4, "table_stride": 64},
        {**small, "warps": 2, "table_stride": 64},
        {**small, "warps": 2, "step_k": 64, "table_stride": 64},
        {**small, "warps": 2, "step_k": 64, "table_stride": 64, "m_tiles": 4, "batch_rows": 32},
    ]

    def fitting(wishes: Sequence[Wish], stages: int) -> Iterator[TensorConfig]:
        found = (_fitted(base._replace(**wish), target) for wish in wishes)
        return (config for config in found if config is not None and config.stages >= stages)

    first = next(fitting(wishes, stages=2))
    options = [(config, least) for wish, least in few.early for config in fitting([wish], 2)]
    options += [(first, 0.8)]
    options += [(config, least) for wish, least in few.late for config in fitting([wish], 3)]
    for config, least in options:
        grid = _even_grid(config, m, n, k, target.sm_count, least)
        if grid is not None:
            return config._replace(grid=grid)
    first = next(fitting(few.uneven, stages=3), first)
    return first._replace(grid=_grid(first, m, n, k, target.sm_count))


class _Wishes(NamedTuple):
    """Tiles for few batch rows.

    Attributes:
        early: to try first, each with the part of the blocks that must be busy for it.
        wishes: to try next.
        late: as `early`, if `wishes` do not come out even.
        uneven: if nothing does.
    """

    early: Sequence[tuple[Wish, float]] = ()
    wishes: Sequence[Wish] = ()
    late: Sequence[tuple[Wish, float]] = ()
    uneven: Sequence[Wish] = ()


def _few_rows(m: int, size: int, nested: bool, roomy: bool) -> _Wishes:
    """Tiles for up to 16 batch rows.

    Args:
        size: elements of the weight.
        roomy: the chip has as much shared memory as an H100; others were not measured.
    """
    large, huge = size >= 1 << 25, size >= 1 << 27
    tall = {"row_tiles": 2, "warps": 4, "warps_k": 2, "table_stride": 256}
    taller = tall | {"row_tiles": 3}
    # Activations, and what nested scales are made of, are read once for more weights.
    tallest = tall | {"row_tiles": 7, "warps": 2}
    narrow = {"row_tiles": 7, "warps": 1, "warps_k": 4, "step_k": 512}
    thin = tall | {"warps": 2, "warps_k": 4, "step_k": 512}
    early: list[tuple[Wish, float]] = []
    if roomy and huge and m > 8:
        early = [(tallest, 0.95)]
        if nested:
            early += [(tall | {"row_tiles": 4}, 0.95)]
    elif roomy and large and nested and m <= 8:
        early = [(narrow, 0.95)]
    elif m == 1 and not large and not nested:
        early = [(thin | {"row_tiles": 1}, 0.8)]
    late = [(thin | {"row_tiles": 3}, 0.84), (thin, 0.84)]
    if huge:
        late = []
    elif m > 8 and nested:
        late = late[:1]
    uneven = [] if large else [taller]
    if m > 8:
        return _Wishes(early, [taller if huge else tall], late, uneven)
    if large:
        # Nested scales keep more producers busy.
        tall |= {"step_k": 512, "producers": 4 if nested else 2}
    return _Wishes(early, [tall], late, uneven)


Staged = TypeVar("Staged", TensorConfig, WgmmaConfig)


def _fitted(config: Staged, target: Target) -> Staged | None:
    """The configuration with as many stages as the chip has memory for, if for two."""
    fixed = config._replace(stages=0).shared_memory
    stage = config._replace(stages=1).shared_memory - fixed
    stages = min((target.shared_memory - fixed) // stage, 8)
    return config._replace(stages=stages) if stages >= 2 else None


def _tiles(config: TensorConfig | WgmmaConfig, m: int, n: int) -> int:
    return -(-n // config.tile_n) * -(-m // config.tile_m)


def _even_grid(
    config: TensorConfig | WgmmaConfig, m: int, n: int, k: int, blocks: int, least: float = 0.8
) -> int | None:
    """At most `blocks`, so many that a block has a tile of its own, that whole groups of blocks
    share one, or that a block has several whole ones; None if that wastes too many blocks.

    Args:
        least: part of the blocks that must be busy where each has one tile.
    """
    tiles, steps = _tiles(config, m, n), -(-k // config.step_k)
    sharers, rounds = blocks // tiles, -(-tiles // blocks)
    if (
        sharers
        and steps % sharers == 0
        and tiles * sharers >= (least if sharers == 1 else 0.84) * blocks
    ):
        return tiles * sharers
    if tiles % rounds == 0 and tiles // rounds >= 0.95 * blocks:
        return tiles // rounds
    return None


def _grid(config: TensorConfig | WgmmaConfig, m: int, n: int, k: int, blocks: int) -> int:
    """An even one, or else all blocks, which share the steps of all tiles."""
    tiles, steps = _tiles(config, m, n), -(-k // config.step_k)
    return _even_grid(config, m, n, k, blocks) or min(tiles * steps, blocks)
