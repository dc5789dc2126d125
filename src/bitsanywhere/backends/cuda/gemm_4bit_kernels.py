"""The kernels of gemm_4bit and gemv_4bit, with what each is compiled and launched by."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.backends.cuda.parameters import DTYPES


class _Pipelined:
    """What the kernels of loader.cuh and stream_k.cuh have in common; see their attributes."""

    m_tiles: int
    chunk: int
    step_k: int
    grid: int

    @property
    def tile_m(self) -> int:
        """Batch rows of a block."""
        return 8 * self.m_tiles

    @property
    def tile_n(self) -> int:
        """Weight rows of a block."""
        raise NotImplementedError

    @property
    def scales_bytes(self) -> int:
        """Of a stage: SCALE_STRIDE of loader.cuh for each weight row."""
        chunks = self.step_k // self.chunk
        return 4 * self.tile_n * (chunks + 4 if chunks > 4 else chunks)

    @property
    def stages_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        raise NotImplementedError

    @property
    def shared_memory(self) -> int:
        """All shared memory of a block, nested scales' codes included."""
        return self.stages_bytes + 1024 + 512

    @property
    def partial_floats(self) -> int:
        """Floats of workspace that shared tiles take."""
        return 2 * self.grid * self.tile_m * self.tile_n


class _TensorFields(NamedTuple):
    m_tiles: int
    row_tiles: int
    warps: int
    warps_k: int
    producers: int
    chunk: int
    batch_rows: int
    step_k: int
    stages: int
    table_stride: int
    grid: int


class TensorConfig(_TensorFields, _Pipelined):
    """gemm_4bit.cuh: tensor cores, weights decoded in the kernel.

    Attributes:
        m_tiles: 8-row tiles of the batch that a block multiplies at once.
        row_tiles: 16-row tiles of the weight that a warp owns.
        warps: multiplying warps of a block along the weight's rows.
        warps_k: times as many, each with its part of every step.
        producers: warps that copy to shared memory.
        chunk: elements of a weight row that share a scale in the kernel, 32 or 64.
        batch_rows: batch rows that a stage has room for.
        step_k: elements along K that a pipeline stage holds.
        stages: of the pipeline.
        table_stride: bytes from entry to entry of the decoding table in shared memory.
        grid: blocks in all.
    """

    __slots__ = ()

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
        joining = 4 * (self.warps_k - 1) * self.tile_m * self.tile_n
        return (
            256 * self.table_stride
            + self.stages * (weights + activations + self.scales_bytes)
            + joining
        )

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for activations of a dtype."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("CHUNK", self.chunk),
            ("M_TILES", self.m_tiles),
            ("ROW_TILES", self.row_tiles),
            ("WARPS_N", self.warps),
            ("WARPS_K", self.warps_k),
            ("PRODUCERS", self.producers),
            ("STEP_K", self.step_k),
            ("TABLE_STRIDE", self.table_stride),
        )
        return KernelSource("gemm_4bit.cuh", "gemm_4bit", defines)


class _WgmmaFields(NamedTuple):
    m_tiles: int
    warpgroups: int
    chunk: int
    step_k: int
    stages: int
    grid: int


class WgmmaConfig(_WgmmaFields, _Pipelined):
    """gemm_4bit_wgmma.cuh: Hopper's tensor cores, for larger batches.

    Attributes:
        m_tiles: 8-row tiles of the batch that a block multiplies at once.
        warpgroups: that multiply, 64 weight rows each; one more copies.
        chunk: elements of a weight row that share a scale in the kernel, 32 or 64.
        step_k: elements along K that a pipeline stage holds.
        stages: of the pipeline.
        grid: blocks in all.
    """

    __slots__ = ()

    @property
    def tile_n(self) -> int:
        """Weight rows of a block."""
        return 64 * self.warpgroups

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 128 * (self.warpgroups + 1)

    @property
    def stages_bytes(self) -> int:
        """Dynamic shared memory of a block, room to align it included."""
        activations = self.tile_m * self.step_k * 2
        weights = self.tile_n * (self.step_k // 2 + 16)
        stage = activations + weights + self.scales_bytes
        return self.stages * (-(-stage // 1024) * 1024) + 1024 + 65536

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for activations of a dtype."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("CHUNK", self.chunk),
            ("M_TILES", self.m_tiles),
            ("WARPGROUPS", self.warpgroups),
            ("STEP_K", self.step_k),
        )
        return KernelSource("gemm_4bit_wgmma.cuh", "gemm_4bit_wgmma", defines, specific=True)


class GeneralConfig(NamedTuple):
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

    def source(self, dtype: torch.dtype) -> KernelSource:
        """The kernel for activations of a dtype."""
        defines = (
            ("DTYPE", DTYPES[dtype]),
            ("GROUPED", int(self.grouped)),
            ("ROWS", self.rows),
            ("M_ROWS", self.m_rows),
        )
        return KernelSource("gemm_4bit_general.cuh", "gemm_4bit_general", defines)


class DequantizeConfig(NamedTuple):
    """dequantize_4bit into a temporary tensor, then torch's own matrix product."""


KernelConfig = TensorConfig | WgmmaConfig | GeneralConfig
Config = KernelConfig | DequantizeConfig
