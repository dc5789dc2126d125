"""optimizer_update_32bit on CUDA, of one tensor and of many: launches of its .cuh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.optimizer_tensors import (
    MOST_TENSORS,
    NUMBERS,
    Tables,
    Tensors,
    addresses,
    packed_settings,
)
from bitsanywhere.backends.cuda.parameters import DTYPES, grid_size
from bitsanywhere.backends.cuda.workspace import workspace
from bitsanywhere.ops.optimizer_rules import Settings
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

THREADS = 256
# For each multiprocessor; many more than it holds at once measured fastest (H100).
_BLOCKS = 64


def source(rule: int, dtype: torch.dtype) -> KernelSource:
    """The kernel for a rule and a dtype of gradients and parameters."""
    defines = (
        ("RULE", rule),
        ("DTYPE", DTYPES[dtype]),
        ("THREADS", THREADS),
        ("MOST_TENSORS", MOST_TENSORS),
    )
    return KernelSource("optimizer_update_32bit.cuh", "optimizer_update_32bit", defines)


def norm_source(dtype: torch.dtype) -> KernelSource:
    """The kernel for the norm of an update by any rule."""
    defines = (("DTYPE", DTYPES[dtype]), ("THREADS", THREADS), ("MOST_TENSORS", MOST_TENSORS))
    return KernelSource("optimizer_norm.cuh", "optimizer_norm", defines)


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` and `run_multi` may ask for."""
    updates = [source(rule, dtype) for rule in sorted(set(NUMBERS.values())) for dtype in DTYPES]
    return updates + [norm_source(dtype) for dtype in DTYPES]


@cache
def _plan(index: int, rule: int, dtype: torch.dtype) -> tuple[LoadedKernel, int]:
    target = Target.of(torch.device("cuda", index))
    return get_kernel(source(rule, dtype), target, index), target.sm_count * _BLOCKS


@cache
def _norm_plan(index: int, dtype: torch.dtype) -> tuple[LoadedKernel, int]:
    target = Target.of(torch.device("cuda", index))
    return get_kernel(norm_source(dtype), target, index), target.sm_count * 8


class Update:
    """The update of some parameters, with everything but their gradients and the step's numbers;
    see `Op.bind`.

    Args: those of the op, as lists.
    """

    def __init__(self, optimizer_name: str, p: Tensors, state1: Tensors, state2: Tensors) -> None:
        self._name, self._index = optimizer_name, p[0].get_device()
        rule = NUMBERS[optimizer_name]
        kernel, most = _plan(self._index, rule, p[0].dtype)
        self._tables = Tables(rule, p, state1, state2)
        grids = [grid_size(-(-blocks // (THREADS // 32)), most) for blocks in self._tables.blocks]
        self._kernels = [kernel.bind((grid,), THREADS, 0, kernel.layout) for grid in grids]

    def __call__(self, g: Sequence[int], *numbers: float) -> None:
        settings = packed_settings(self._name, Settings(*numbers))  # type: ignore[arg-type]
        self.launch(g, settings, 0, 0.0)

    def launch(self, g: Sequence[int], settings: bytes, unorm: int, allowed: float) -> None:
        """The launches.

        Args:
            g: addresses of the gradients.
            settings: see `packed_settings`.
            unorm: address of the sum of squares of the update, or 0.
            allowed: the largest norm.
        """
        stream, tables = current_stream(self._index), self._tables
        for (pack, launch), table, blocks in zip(self._kernels, tables.fill(g), tables.blocks):
            launch(stream, pack(table, settings, unorm, allowed, blocks))


def bind(device: torch.device, optimizer_name: str, *tensors: Tensors) -> Update:
    """See `Update`; the device is that of the parameters."""
    return Update(optimizer_name, *tensors)


def run_multi(
    optimizer_name: str,
    g: Tensors,
    p: Tensors,
    state1: Tensors,
    state2: Tensors,
    *numbers: float,
) -> None:
    """Moves all parameters and states in place; numbers: the fields of `Settings`."""
    Update(optimizer_name, p, state1, state2)(addresses(g), *numbers)


def run(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    unorm_vec: torch.Tensor | None,
    max_unorm: float,
    param_norm: float,
    *numbers: float | bool,
) -> None:
    """Moves one parameter and its states in place.

    With a max_unorm above 0, unorm_vec receives the sum of squares of the update.
    """
    h = Settings(*numbers) if len(numbers) == 10 else Settings(*numbers, False)  # type: ignore
    second = [] if state2 is None else [state2]
    unorm = 0
    settings = packed_settings(optimizer_name, h)
    if max_unorm > 0 and unorm_vec is not None and p.numel():
        unorm = unorm_vec.data_ptr()
        _norm(NUMBERS[optimizer_name], g, p, state1, second, settings, unorm)
    update = Update(optimizer_name, [p], [state1], second)
    update.launch(addresses([g]), settings, unorm, max_unorm * param_norm)


def _norm(
    rule: int,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: Tensors,
    settings: bytes,
    unorm: int,
) -> None:
    index = p.get_device()
    kernel, most = _norm_plan(index, p.dtype)
    stream = current_stream(index)
    grid = grid_size(-(-p.numel() // THREADS), most)
    partial, arrivals = workspace(index, stream, 2 * grid).addresses
    for tensors in Tables(rule, [p], [state1], state2).fill(addresses([g])):
        arguments = (tensors, settings, rule, partial, arrivals, unorm)
        kernel.launch((grid,), THREADS, 0, stream, arguments)


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
KERNEL_MULTI = Kernel(run=run_multi, why_not=why_not, bind=bind)
