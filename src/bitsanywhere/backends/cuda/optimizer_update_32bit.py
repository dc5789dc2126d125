"""optimizer_update_32bit on CUDA, of one tensor and of many: launches of its .cuh."""

from __future__ import annotations

from functools import cache

import torch

from bitsanywhere.backends.cuda.jit import KernelSource, LoadedKernel, current_stream, get_kernel
from bitsanywhere.backends.cuda.optimizer_tensors import (
    MOST_TENSORS,
    NUMBERS,
    Tensors,
    packed_settings,
    tables,
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


def run_multi(
    optimizer_name: str,
    g: Tensors,
    p: Tensors,
    state1: Tensors,
    state2: Tensors,
    *numbers: float,
) -> None:
    """Moves all parameters and states in place; numbers: the fields of `Settings`."""
    settings = packed_settings(optimizer_name, Settings(*numbers))  # type: ignore[arg-type]
    _launch(NUMBERS[optimizer_name], g, p, state1, state2, settings, 0, 0.0)


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
    rule, settings = NUMBERS[optimizer_name], packed_settings(optimizer_name, h)
    if max_unorm > 0 and unorm_vec is not None and p.numel():
        unorm = unorm_vec.data_ptr()
        _norm(rule, g, p, state1, second, settings, unorm)
    _launch(rule, [g], [p], [state1], second, settings, unorm, max_unorm * param_norm)


def _launch(
    rule: int,
    g: Tensors,
    p: Tensors,
    state1: Tensors,
    state2: Tensors,
    settings: bytes,
    unorm: int,
    allowed: float,
) -> None:
    index = p[0].get_device()
    kernel, most = _plan(index, rule, p[0].dtype)
    stream = current_stream(index)
    for tensors, blocks in tables(rule, g, p, state1, state2):
        grid = grid_size(-(-blocks // (THREADS // 32)), most)
        arguments = (tensors, settings, unorm, allowed, blocks)
        kernel.launch((grid,), THREADS, 0, stream, arguments)


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
    for tensors, _ in tables(rule, [g], [p], [state1], state2):
        arguments = (tensors, settings, rule, partial, arrivals, unorm)
        kernel.launch((grid,), THREADS, 0, stream, arguments)


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not)
KERNEL_MULTI = Kernel(run=run_multi, why_not=why_not)
