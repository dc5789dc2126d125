"""How gemm_4bit and gemv_4bit are run: a pure function of shape, dtype and chip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.backends.cuda.parameters import DTYPES, values_macro
from bitsanywhere.targets import Target

# The driver keeps this much shared memory of each resident block to itself (sm_80 on).
_RESERVED = 1024


@dataclass(frozen=True)
class TensorConfig:
    """gemm_4bit.cuh: tensor cores, weights decoded in the kernel.

    Attributes:
        m_tiles: 8-row tiles of the batch that a block multiplies at once.
        row_tiles: 16-row tiles of the weight that a warp owns.
        warps: of a block.
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
        return 32 * self.warps

    @property
    def stages_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        weights = self.tile_n * (self.step_k // 2 + self.chunk // 2)
        activations = self.tile_m * (self.step_k * 2 + (16 if self.chunk == 64 else 64))
        scales = self.tile_n * (self.step_k // self.chunk) * 4
        return self.stages * (weights + activations + scales)

    @property
    def shared_memory(self) -> int:
        """All shared memory of a block, nested scales' codes included."""
        return self.stages_bytes + 1024 * self.table_copies + 1024 + 16

    @property
    def partial_floats(self) -> int:
        """Floats of workspace that shared tiles take."""
        return 2 * self.grid * self.tile_m * self.tile_n

    def fits(self, target: Target) -> bool:
        """Whether the chip holds `blocks_a_sm` of these blocks."""
        most = min(target.shared_memory, (target.shared_memory + _RESERVED) // self.blocks_a_sm - _RESERVED)
        return self.shared_memory <= most

    def source(
        self, dtype: torch.dtype, blocksize: int, quant_type: str | None, nested: bool
    ) -> KernelSource:
        """The kernel; `quant_type` None for a codebook that comes as a tensor."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("BLOCKSIZE", blocksize),
            ("NESTED", int(nested)),
            ("CHUNK", self.chunk),
            ("M_TILES", self.m_tiles),
            ("ROW_TILES", self.row_tiles),
            ("WARPS", self.warps),
            ("STEP_K", self.step_k),
            ("STAGES", self.stages),
            ("TABLE_COPIES", self.table_copies),
            ("BLOCKS_A_SM", self.blocks_a_sm),
        )
        values = values_macro(quant_type) if quant_type else ()
        return KernelSource("gemm_4bit.cuh", "gemm_4bit", defines + values)


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

    def source(
        self, dtype: torch.dtype, blocksize: int, quant_type: str | None, nested: bool
    ) -> KernelSource:
        """The kernel; `quant_type` None for a codebook that comes as a tensor."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("BLOCKSIZE", blocksize),
            ("NESTED", int(nested)),
            ("GROUPED", int(self.grouped)),
            ("ROWS", self.rows),
            ("M_ROWS", self.m_rows),
        )
        values = values_macro(quant_type) if quant_type else ()
        return KernelSource("gemm_4bit_general.cuh", "gemm_4bit_general", defines + values)


@dataclass(frozen=True)
class DequantizeConfig:
    """dequantize_4bit into a temporary tensor, then torch's own matrix product."""


Config = TensorConfig | GeneralConfig | DequantizeConfig
