"""How products of int8 matrices are run: a pure function of shape, dtype and chip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.backends.cuda.parameters import DTYPES
from bitsanywhere.targets import Target

# Stands for the sums themselves, where a dtype of the result is asked for.
RAW = torch.int32
# Of int8_wgmma.cuh, by weight rows of a tile, the widest first: stages, and blocks that a
# multiprocessor holds.
_PIPELINES = {256: (4, 1), 224: (4, 1), 128: (6, 1), 64: (4, 2), 32: (5, 2)}


@dataclass(frozen=True)
class StreamConfig:
    """int8_gemm.cuh: few rows of activations, or any K and N.

    Attributes:
        m_tiles: 8-row tiles of the activations of a block.
        warps: of a block, which share out K.
        unroll: chunks of 64 along K in a warp's step.
        depth: steps that a warp reads ahead.
        blocks_a_sm: blocks that a multiprocessor shall hold.
        vectors: K and all addresses are multiples of 16.
        grid: blocks in all, which share out the tiles.
    """

    m_tiles: int
    warps: int
    unroll: int
    depth: int
    blocks_a_sm: int
    vectors: bool
    grid: int

    @property
    def tile_m(self) -> int:
        """Rows of activations of a block."""
        return 8 * self.m_tiles

    @property
    def tile_n(self) -> int:
        """Weight rows of a tile."""
        return 16

    @property
    def threads(self) -> int:
        """Threads of a block, the warp that finishes tiles included."""
        return 32 * (self.warps + 1)

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for a dtype of the result, RAW for the sums."""
        defines = (
            ("DTYPE", DTYPES.get(dtype, 0)),
            ("RAW", int(dtype == RAW)),
            ("M_TILES", self.m_tiles),
            ("WARPS", self.warps),
            ("UNROLL", self.unroll),
            ("DEPTH", self.depth),
            ("BLOCKS_A_SM", self.blocks_a_sm),
            ("ALIGNED", int(self.vectors)),
        )
        return KernelSource("int8_gemm.cuh", "int8_gemm", defines)


@dataclass(frozen=True)
class WgmmaConfig:
    """int8_wgmma.cuh: Hopper's tensor cores and copy engine, for more rows.

    Attributes:
        warpgroups: that multiply, each 64 rows of activations.
        tile_n: weight rows of a block: 32, 64, 112, 128, 224 or 256.
        cluster: blocks along M and along N that fetch together.
        stages: of the pipeline.
        blocks_a_sm: blocks that a multiprocessor shall hold.
        grid: blocks in all.
    """

    warpgroups: int
    tile_n: int
    cluster: tuple[int, int]
    stages: int
    blocks_a_sm: int
    grid: int

    @property
    def tile_m(self) -> int:
        """Rows of activations of a block."""
        return 64 * self.warpgroups

    @property
    def boxes(self) -> tuple[int, int]:
        """Rows of activations and of the weight that a block fetches at once."""
        return self.tile_m // self.cluster[1], self.tile_n // self.cluster[0]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 128 * (self.warpgroups + 1)

    @property
    def dynamic_bytes(self) -> int:
        """Dynamic shared memory of a block, room to align it included."""
        stages = self.stages * 128 * (self.tile_m + self.tile_n)
        return max(stages, 4 * self.tile_m * (self.tile_n + 8)) + 1024

    @property
    def shared_memory(self) -> int:
        """All shared memory of a block."""
        return self.dynamic_bytes + 64 * (self.tile_m + self.tile_n) + 16 * self.stages + 192

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for a dtype of the result, RAW for the sums."""
        defines = (
            ("DTYPE", DTYPES.get(dtype, 0)),
            ("RAW", int(dtype == RAW)),
            ("WARPGROUPS", self.warpgroups),
            ("TILE_N", self.tile_n),
            ("CLUSTER_M", self.cluster[0]),
            ("CLUSTER_N", self.cluster[1]),
            ("STAGES", self.stages),
            ("BLOCKS_A_SM", self.blocks_a_sm),
        )
        return KernelSource("int8_wgmma.cuh", "int8_wgmma", defines, specific=True)


@dataclass(frozen=True)
class LibraryConfig:
    """torch._int_mm (cuBLASLt) into memory, then int8_dequant.cuh."""


KernelConfig = StreamConfig | WgmmaConfig
Config = KernelConfig | LibraryConfig


def choose(m: int, n: int, k: int, target: Target, aligned: bool = True) -> Config:
    """The way to multiply (m, k) codes with an (n, k) weight on a chip.

    Args:
        aligned: the addresses of both are multiples of 16.
    """
    vectors = aligned and k % 16 == 0 and k > 0
    few = 32 if n < 128 * target.sm_count // 2 else 16
    if target.arch == "sm_90" and vectors and m > few:
        return _wgmma_config(m, n, target)
    if m > 64 and aligned and n % 8 == k % 8 == 0 and k > 0 and target.major >= 8:
        return LibraryConfig()
    return _stream_config(m, n, target, vectors)


def dequant_grid(m: int, n: int) -> int:
    """Blocks of int8_dequant.cuh for sums of shape (m, n)."""
    return -(-m // 32) * -(-n // 128)


def every_config(target: Target) -> list[KernelConfig]:
    """Configurations that stand for all that `choose` may return, as far as kernels go."""
    fitting = [tile_n * target.sm_count for tile_n in _PIPELINES]
    found = [
        choose(m, n, k, target)
        for m in (1, 16, 32, 64, 128, 256)
        for n in (64, *fitting, *(n // 2 for n in fitting))
        for k in (4096, 4100)
    ]
    return [config for config in found if not isinstance(config, LibraryConfig)]


def _wgmma_config(m: int, n: int, target: Target) -> WgmmaConfig:
    warpgroups = 1 if m <= 64 else 2
    tile_m = 64 * warpgroups
    rows = -(-m // tile_m)

    def longest(tile_n: int) -> int:
        """What the multiprocessor with the most tiles has to do."""
        return -(-rows * -(-n // tile_n) // target.sm_count) * tile_n

    # The widest tiles, which move the fewest bytes, of those that are shared out well.
    tiles = [tile_n for tile_n in _PIPELINES if warpgroups == 2 or tile_n <= 64]
    best = min(map(longest, tiles))
    tile_n = next(tile_n for tile_n in tiles if longest(tile_n) <= 1.1 * best)
    stages, blocks = _PIPELINES[tile_n]
    # The larger part of a step's codes is fetched together.
    cluster = (2, 1) if rows % 2 == 0 and tile_n >= tile_m else (1, 2)
    return WgmmaConfig(
        warpgroups=warpgroups, tile_n=tile_n, cluster=cluster, stages=stages, blocks_a_sm=blocks,
        grid=_whole(rows, cluster[0]) * _whole(-(-n // tile_n), cluster[1]),
    )  # fmt: skip


def _whole(count: int, group: int) -> int:
    """The least multiple of `group` that is not below `count`."""
    return -(-count // group) * group


def _stream_config(m: int, n: int, target: Target, vectors: bool) -> StreamConfig:
    blocks = 1
    if not vectors:
        m_tiles, unroll, depth = 2, 1, 1
    elif m <= 16:
        m_tiles, unroll, depth = (1 if m <= 8 else 2), 2, 6
    elif m <= 32:
        m_tiles, unroll, depth = 4, 2, 4
    else:
        m_tiles, unroll, depth = 8, 1, 8
    tiles = -(-m // (8 * m_tiles)) * -(-n // 16)
    return StreamConfig(
        m_tiles=m_tiles, warps=8, unroll=unroll, depth=depth, blocks_a_sm=blocks,
        vectors=vectors, grid=min(tiles, target.sm_count * blocks),
    )  # fmt: skip


@cache
def dequant_source(dtype: torch.dtype) -> KernelSource:
    """int8_dequant.cuh for a dtype of the result."""
    return KernelSource("int8_dequant.cuh", "int8_dequant", (("DTYPE", DTYPES[dtype]),))
