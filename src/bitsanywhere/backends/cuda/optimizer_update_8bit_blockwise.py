"""optimizer_update_8bit_blockwise on CUDA, of one tensor and of many: configuration and launches of
optimizer_update_8bit_blockwise.cuh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.optimizer_tensors import (
    ADEMAMIX,
    MOST_TENSORS,
    NUMBERS,
    TWO_STATES,
    Tables,
    Tensors,
    addresses,
    packed_settings,
)
from bitsanywhere.backends.cuda.parameters import DTYPES, grid_size
from bitsanywhere.ops.optimizer_rules import Settings
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# Entries of a table of codes, for one sign (optimizer_codec.cuh).
_BUCKETS = 17 * 128 + 1


@dataclass(frozen=True)
class Config:
    """How a rule is launched.

    Attributes:
        threads: of a block; one block fills a multiprocessor.
        copies: of each codebook in shared memory.
        shared_memory: bytes a block, all tables.
        blocks: that the chip holds at once.
    """

    threads: int
    copies: int
    shared_memory: int
    blocks: int


def choose(rule: int, target: Target) -> Config:
    """The configuration: as many copies of the codebooks as there is room for, up to one a bank."""
    maps = 2 if rule in TWO_STATES else 1
    copies = 32
    while _bytes(maps, copies) > target.shared_memory:
        copies //= 2
    # As many as leave each enough registers for its eight elements.
    threads = 512 if rule == ADEMAMIX else 640 if maps == 2 else 768
    return Config(threads, copies, _bytes(maps, copies), target.sm_count)


def _bytes(maps: int, copies: int) -> int:
    """Size of the structure Tables in optimizer_update_8bit_blockwise.cuh."""
    return 4 * (maps * 256 * copies + (maps + 1) * _BUCKETS + maps * 258)


def source(rule: int, dtype: torch.dtype, config: Config) -> KernelSource:
    """The kernel for a rule and a dtype of gradients and parameters."""
    defines = (
        ("RULE", rule),
        ("DTYPE", DTYPES[dtype]),
        ("THREADS", config.threads),
        ("COPY_SHIFT", (4 * config.copies).bit_length() - 1),
        ("MOST_TENSORS", MOST_TENSORS),
    )
    file, entry = "optimizer_update_8bit_blockwise.cuh", "optimizer_update_8bit_blockwise"
    return KernelSource(file, entry, defines)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` and `run_multi` may ask for."""
    return [
        source(rule, dtype, choose(rule, target))
        for rule in sorted(set(NUMBERS.values()))
        for dtype in DTYPES
    ]


@cache
def _plan(index: int, rule: int, dtype: torch.dtype) -> tuple[LoadedKernel, Config]:
    target = Target.of(torch.device("cuda", index))
    config = choose(rule, target)
    return get_kernel(source(rule, dtype, config), target, index), config


class Update:
    """The update of some parameters, with everything but their gradients and the step's numbers;
    see `Op.bind`.

    Args: those of the op, as lists.
    """

    def __init__(
        self,
        optimizer_name: str,
        p: Tensors,
        state1: Tensors,
        state2: Tensors,
        absmax1: Tensors,
        absmax2: Tensors,
    ) -> None:
        self._name, self._index = optimizer_name, p[0].get_device()
        rule = NUMBERS[optimizer_name]
        kernel, config = _plan(self._index, rule, p[0].dtype)
        self._tables = Tables(rule, p, state1, state2, absmax1, absmax2)
        grids = [
            grid_size(-(-blocks // (config.threads // 32)), config.blocks)
            for blocks in self._tables.blocks
        ]
        self._kernels = [
            kernel.bind((grid,), config.threads, config.shared_memory, kernel.layout)
            for grid in grids
        ]

    def __call__(
        self, g: Sequence[int], qmap1: torch.Tensor, qmap2: torch.Tensor | None, *numbers: float
    ) -> None:
        settings = packed_settings(self._name, Settings(*numbers))  # type: ignore[arg-type]
        stream = current_stream(self._index)
        maps = qmap1.data_ptr(), 0 if qmap2 is None else qmap2.data_ptr()
        tables = self._tables
        for (pack, launch), table, blocks in zip(self._kernels, tables.fill(g), tables.blocks):
            launch(stream, pack(table, settings, *maps, blocks))


def bind(device: torch.device, optimizer_name: str, *tensors: Tensors) -> Update:
    """See `Update`; the device is that of the parameters."""
    return Update(optimizer_name, *tensors)


def run_multi(
    optimizer_name: str,
    g: Tensors,
    p: Tensors,
    state1: Tensors,
    state2: Tensors,
    absmax1: Tensors,
    absmax2: Tensors,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    *numbers: float,
) -> None:
    """Moves all parameters and states in place; numbers: the fields of `Settings`."""
    update = Update(optimizer_name, p, state1, state2, absmax1, absmax2)
    update(addresses(g), qmap1, qmap2, *numbers)


def run(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    absmax1: torch.Tensor,
    absmax2: torch.Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """Moves one parameter and its states in place."""
    run_multi(
        optimizer_name, [g], [p], [state1], [] if state2 is None else [state2], [absmax1],
        [] if absmax2 is None else [absmax2], qmap1, qmap2, beta1, beta2, beta3, alpha, eps,
        weight_decay, step, lr, gnorm_scale, skip_zeros,
    )  # fmt: skip


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
KERNEL_MULTI = Kernel(run=run_multi, why_not=why_not, bind=bind)
