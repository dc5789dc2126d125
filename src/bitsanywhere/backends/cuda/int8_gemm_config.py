"""How products of int8 matrices are run: a pure function of shape, dtype and chip."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.backends.cuda.parameters import DTYPES
from bitsanywhere.targets import Target

# Stands for the sums themselves, where a dtype of the result is asked for.
RAW = torch.int32
# enum Dtype of int8_factors.cuh.
RESULTS = {**DTYPES, RAW: 3}
# Of int8_wgmma.cuh: warpgroups, weight rows of a tile, stages, and blocks that a multiprocessor
# holds; larger tiles first.
_WGMMA = (
    (4, 128, 4, 1), (4, 112, 4, 1), (2, 128, 6, 1), (2, 112, 6, 1), (2, 64, 8, 1), (1, 64, 4, 2),
    (1, 64, 8, 1), (1, 32, 12, 1),
)  # fmt: skip
# So much dynamic shared memory that no two blocks share a multiprocessor.
_MORE_THAN_HALF = 114 * 1024


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
        """The kernel, the same for every dtype of the result."""
        defines = (
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
        tile_n: weight rows of a block: 32, 64, 112 or 128.
        stages: of the pipeline.
        blocks_a_sm: blocks that a multiprocessor can hold.
        spread: it shall hold one only. Blocks that begin while the kernel ahead is ending would
            share the first multiprocessors to be free, although there are enough.
        grid: blocks in all.
    """

    warpgroups: int
    tile_n: int
    stages: int
    blocks_a_sm: int
    spread: bool
    grid: int

    @property
    def tile_m(self) -> int:
        """Rows of activations of a block."""
        return 64 * self.warpgroups

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 128 * (self.warpgroups + 1)

    @property
    def dynamic_bytes(self) -> int:
        """Dynamic shared memory of a block, room to align it included."""
        stages = self.stages * 128 * (self.tile_m + self.tile_n)
        needed = max(stages, 4 * self.tile_m * (self.tile_n + 8)) + 1024
        return max(needed, _MORE_THAN_HALF) if self.spread else needed

    @property
    def shared_memory(self) -> int:
        """All shared memory of a block."""
        factors = 68 * self.tile_m + 72 * self.tile_n
        return self.dynamic_bytes + factors + 16 * self.stages + 192

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for a dtype of the result, which takes its last steps faster so."""
        defines = (
            ("RESULT", RESULTS[dtype]),
            ("WARPGROUPS", self.warpgroups),
            ("TILE_N", self.tile_n),
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
    fitting = [tile_n * target.sm_count for tile_n in (32, 64, 112, 128)]
    found = [
        choose(m, n, k, target)
        for m in (1, 16, 32, 64, 128, 256)
        for n in (64, *fitting, *(n // 2 for n in fitting))
        for k in (4096, 4100)
    ]
    return [config for config in found if not isinstance(config, LibraryConfig)]


def _wgmma_config(m: int, n: int, target: Target) -> WgmmaConfig:
    def blocks(warpgroups: int, tile_n: int) -> int:
        return -(-m // (64 * warpgroups)) * -(-n // tile_n)

    def time(tile: tuple[int, int, int, int]) -> int:
        """Of the multiprocessor with the most tiles, about in proportion: bytes to fetch."""
        warpgroups, tile_n, _, _ = tile
        return -(-blocks(warpgroups, tile_n) // target.sm_count) * (64 * warpgroups + tile_n)

    # None of which a whole warpgroup would idle, or meant for two blocks where there is one.
    tiles = [
        tile
        for tile in _WGMMA
        if 64 * (tile[0] - 1) < m and (tile[3] == 1 or blocks(*tile[:2]) > target.sm_count)
    ]
    warpgroups, tile_n, stages, blocks_a_sm = min(tiles, key=time)
    grid = blocks(warpgroups, tile_n)
    return WgmmaConfig(
        warpgroups=warpgroups, tile_n=tile_n, stages=stages, blocks_a_sm=blocks_a_sm,
        spread=grid <= target.sm_count, grid=grid,
    )  # fmt: skip


def _stream_config(m: int, n: int, target: Target, vectors: bool) -> StreamConfig:
    # Of two blocks one goes on while the other waits for outliers.
    if not vectors:
        m_tiles, unroll, depth, blocks = 2, 1, 1, 2
    elif m <= 8:
        m_tiles, unroll, depth, blocks = 1, 2, 3, 2
    elif m <= 32:
        m_tiles, unroll, depth, blocks = (2 if m <= 16 else 4), 1, 4, 2
    else:
        m_tiles, unroll, depth, blocks = 8, 1, 4, 1
    tiles = -(-m // (8 * m_tiles)) * -(-n // 16)
    return StreamConfig(
        m_tiles=m_tiles, warps=8, unroll=unroll, depth=depth, blocks_a_sm=blocks,
        vectors=vectors, grid=min(tiles, target.sm_count * blocks),
    )  # fmt: skip


DEQUANT = KernelSource("int8_dequant.cuh", "int8_dequant")
