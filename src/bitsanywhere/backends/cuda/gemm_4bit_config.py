"""How gemm_4bit and gemv_4bit are run: a pure function of shape, dtype and chip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.backends.cuda.parameters import DTYPES
from bitsanywhere.targets import Target

# The driver keeps this much shared memory of each resident block to itself (sm_80 on).
_RESERVED = 1024


@dataclass(frozen=True)
class TensorConfig:
    """gemm_4bit.cuh: tensor cores, weights decoded in the kernel.

    Attributes:
        m_tiles: 8-row tiles of the batch that a block multiplies at once.
        row_tiles: 16-row tiles of the weight that a warp owns.
        warps: of a block along the weight's rows.
        warps_k: times as many, each with its part of every step.
        producers: warps that copy to shared memory.
        batch_rows: batch rows that a stage has room for.
        chunk: elements of a weight row that share a scale in the kernel, 32 or 64.
        step_k: elements along K that a pipeline stage holds.
        stages: of the pipeline.
        table_copies: of the decoding table in shared memory.
        blocks_a_sm: blocks that a multiprocessor shall hold.
        grid: blocks in all.
    """

    m_tiles: int
    row_tiles: int
    warps: int
    chunk: int
    step_k: int
    stages: int
    table_copies: int
    blocks_a_sm: int
    grid: int
    warps_k: int = 1
    producers: int = 1
    batch_rows: int = 8

    @property
    def tile_m(self) -> int:
        """Batch rows of a block."""
        return 8 * self.m_tiles

    @property
    def tile_n(self) -> int:
        """Weight rows of a block."""
        return 16 * self.row_tiles * self.warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.warps * self.warps_k + self.producers)

    @property
    def stages_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        weights = self.tile_n * (self.step_k // 2 + self.chunk // 2)
        activations = self.batch_rows * (self.step_k * 2 + (16 if self.chunk == 64 else 64))
        scales = self.tile_n * (self.step_k // self.chunk) * 4
        joining = 4 * (self.warps_k - 1) * self.tile_m * self.tile_n
        return self.stages * (weights + activations + scales) + joining

    @property
    def shared_memory(self) -> int:
        """All shared memory of a block, nested scales' codes included."""
        return self.stages_bytes + 1024 * self.table_copies + 1024 + 512

    @property
    def partial_floats(self) -> int:
        """Floats of workspace that shared tiles take."""
        return 2 * self.grid * self.tile_m * self.tile_n

    def fits(self, target: Target) -> bool:
        """Whether the chip holds `blocks_a_sm` of these blocks."""
        share = (target.shared_memory + _RESERVED) // self.blocks_a_sm - _RESERVED
        return self.shared_memory <= min(target.shared_memory, share)

    def source(self, dtype: torch.dtype, nested: bool) -> KernelSource:
        """The kernel for activations of a dtype, for nested or plain scales."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("NESTED", int(nested)),
            ("CHUNK", self.chunk),
            ("M_TILES", self.m_tiles),
            ("ROW_TILES", self.row_tiles),
            ("WARPS_N", self.warps),
            ("WARPS_K", self.warps_k),
            ("PRODUCERS", self.producers),
            ("BATCH_ROWS", self.batch_rows),
            ("STEP_K", self.step_k),
            ("STAGES", self.stages),
            ("TABLE_COPIES", self.table_copies),
            ("BLOCKS_A_SM", self.blocks_a_sm),
        )
        return KernelSource("gemm_4bit.cuh", "gemm_4bit", defines)


@dataclass(frozen=True)
class GeneralConfig:
    """gemm_4bit_general.cuh: float32 arithmetic, any K.

    Attributes:
        m_rows: batch rows of a warp.
        rows: weight rows of a warp.
        grouped: K is a multiple of 8.
        grid: blocks, for weight rows and batch rows.
    """

    m_rows: int
    rows: int
    grouped: bool
    grid: tuple[int, int]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 256

    def source(self, dtype: torch.dtype, nested: bool) -> KernelSource:
        """The kernel for activations of a dtype, for nested or plain scales."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("NESTED", int(nested)),
            ("GROUPED", int(self.grouped)),
            ("ROWS", self.rows),
            ("M_ROWS", self.m_rows),
        )
        return KernelSource("gemm_4bit_general.cuh", "gemm_4bit_general", defines)


@dataclass(frozen=True)
class DequantizeConfig:
    """dequantize_4bit into a temporary tensor, then torch's own matrix product."""


Config = TensorConfig | GeneralConfig | DequantizeConfig


def choose(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    blocksize: int,
    target: Target,
    aligned: bool = True,
) -> Config:
    """The way to multiply (m, k) activations with an (n, k) weight on a chip.

    Args:
        aligned: the packed weight's address is a multiple of 16.
    """
    tensor_cores = dtype == torch.float16 or (dtype == torch.bfloat16 and target.major >= 8)
    if tensor_cores and aligned and k % 32 == 0 and k > 0 and m <= _most_fused(target):
        return _tensor_config(m, n, k, blocksize, target)
    if m <= 16:
        return _general_config(m, n, k, aligned)
    return DequantizeConfig()


def every_config(dtype: torch.dtype, target: Target) -> list[TensorConfig | GeneralConfig]:
    """Configurations that stand for all that `choose` may return, as far as kernels go."""
    shapes = [(m, 4096, k) for m in (1, 8, 16, 32, 64) for k in (4096, 4128, 1000, 999)]
    configs = [choose(*shape, dtype, 64, target) for shape in shapes]
    return [config for config in configs if not isinstance(config, DequantizeConfig)]


def _most_fused(target: Target) -> int:
    return 256 if target.major >= 8 else 64


def _general_config(m: int, n: int, k: int, aligned: bool) -> GeneralConfig:
    m_rows = 1 if m == 1 else 8
    grid = (-(-n // 16), -(-m // m_rows))
    return GeneralConfig(m_rows=m_rows, rows=2, grouped=aligned and k % 8 == 0, grid=grid)


def _tensor_config(m: int, n: int, k: int, blocksize: int, target: Target) -> TensorConfig:
    m_tiles = 1 if m <= 8 else 2 if m <= 16 else 4 if m <= 32 else 8
    chunk = 64 if blocksize >= 64 and k % 64 == 0 else 32
    base = TensorConfig(
        m_tiles=m_tiles, row_tiles=1, warps=8, chunk=chunk, step_k=256, stages=3,
        table_copies=32, blocks_a_sm=2, grid=1,
    )  # fmt: skip
    if m_tiles == 1:
        wishes = [{}, {"warps": 4, "step_k": 128}]
    elif m_tiles == 2:
        wishes = [{"row_tiles": 2, "blocks_a_sm": 1}]
    else:
        wishes = [{"row_tiles": 2, "warps": 4, "step_k": 128}]
    wishes += [
        {"blocks_a_sm": 1, "step_k": 128},
        {"warps": 4, "blocks_a_sm": 1, "step_k": 128},
        {"warps": 4, "blocks_a_sm": 1, "step_k": 128, "table_copies": 16},
        {"warps": 2, "blocks_a_sm": 1, "step_k": 128, "table_copies": 16},
        {"warps": 2, "blocks_a_sm": 1, "step_k": 64, "table_copies": 16},
        {"warps": 2, "blocks_a_sm": 1, "step_k": 64, "table_copies": 16, "m_tiles": 4},
    ]
    for wish in wishes:
        config = replace(base, **wish)
        for stages in (4, 3):
            config = replace(config, stages=stages)
            if config.fits(target):
                tiles = -(-n // config.tile_n) * -(-m // config.tile_m)
                steps = tiles * -(-k // config.step_k)
                return replace(config, grid=min(steps, target.sm_count * config.blocks_a_sm))
    raise AssertionError(f"No configuration fits {target}.")
