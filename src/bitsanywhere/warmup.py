"""Compiling what a model needs before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from bitsanywhere import ops
from bitsanywhere.autograd import matmul_4bit
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.functional import quantize_4bit
from bitsanywhere.nn import Linear4bit, Linear8bitLt

if TYPE_CHECKING:
    from bitsanywhere.backends.cuda.jit import KernelSource
    from bitsanywhere.targets import Target

ROWS = (1, 8, 16, 32, 64, 4096)
Layer = Linear4bit | Linear8bitLt


def warmup(model: torch.nn.Module, rows: Sequence[int] = ROWS, progress: bool = True) -> int:
    """Compiles, in parallel, every kernel that a model's 4-bit and 8-bit layers will use.

    Call it once after loading, before the first batch or the first CUDA graph capture. Compiled
    kernels stay in the cache on disk, so that the next process finds them there.

    Args:
        model: a model whose `Linear4bit` and `Linear8bitLt` layers are quantized, on their
            devices. Optimizers compile at their first step.
        rows: row counts of the inputs to be ready for; each stands for those near it.
        progress: show a progress bar.

    Returns:
        How many kernels (CUDA) or calls (CPU) were made ready.

    Raises:
        InvalidArgumentError: if the model has no quantized layer.
        UnsupportedDeviceError: if a kernel cannot run on its device.
    """
    layers = [module for module in model.modules() if _is_quantized(module)]
    if not layers:
        raise InvalidArgumentError(
            f"warmup: {type(model).__name__} has no quantized layer",
            mend='Move it to its device first: model.to("cuda").',
        )
    floats = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    # What 8-bit layers multiply depends on their input alone.
    dtype = next((parameter.dtype for parameter in floats), torch.float16)
    cuda = [layer for layer in layers if layer.weight.is_cuda]
    other = [layer for layer in layers if not layer.weight.is_cuda]
    return _compile_cuda(cuda, rows, dtype, progress) + _call(other, rows, dtype, progress)


def _is_quantized(module: torch.nn.Module) -> bool:
    if isinstance(module, Linear4bit):
        return getattr(module.weight, "quant_state", None) is not None
    return isinstance(module, Linear8bitLt) and module.weight.dtype == torch.int8


def _dtype(layer: Linear4bit) -> torch.dtype:
    """What the layer multiplies in: its compute dtype, else that of the quantized weight."""
    return layer.compute_dtype or layer.weight.quant_state.dtype


def _compile_cuda(
    layers: Sequence[Layer], rows: Sequence[int], dtype: torch.dtype, progress: bool
) -> int:
    if not layers:
        return 0
    from bitsanywhere.backends.cuda.jit import compile_many
    from bitsanywhere.targets import Target

    count = 0
    for index in sorted({layer.weight.get_device() for layer in layers}):
        target = Target.of(torch.device("cuda", index))
        here = [layer for layer in layers if layer.weight.get_device() == index]
        sources = _sources(here, rows, dtype, target)
        count += len(compile_many(sources, target, index, progress))
    return count


def _sources(
    layers: Sequence[Layer], rows: Sequence[int], dtype: torch.dtype, target: Target
) -> list[KernelSource]:
    """The kernels of some layers on one chip, each once."""
    from bitsanywhere.backends.cuda import sources_for, sources_for_int8

    four, eight = set(), set()
    for layer in layers:
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            kind = (state.blocksize, state.quant_type, state.nested)
            four.add((*state.shape, _dtype(layer), *kind))
        else:
            eight.add((*layer.weight.shape, dtype))
    found = sources_for(sorted(four, key=str), rows, target)
    return found + sources_for_int8(sorted(eight, key=str), rows, target)


def _call(layers: Sequence[Layer], rows: Sequence[int], dtype: torch.dtype, progress: bool) -> int:
    """A small product for each kind of layer and row count: CPU kernels compile on first use.

    Which kernel a layer needs depends on how K divides into blocks, not on how large it is.
    """
    # Function and its arguments but the last, each once.
    kinds: dict[tuple[Callable[..., None], tuple[object, ...]], None] = {}
    for layer in layers:
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            rest = state.shape[1] % state.blocksize
            kind = (_dtype(layer), state.blocksize, state.quant_type, state.nested, rest)
            kinds[_multiply_4bit, kind] = None
        else:
            kinds[_multiply_8bit, (dtype, layer.state.threshold)] = None
    jobs = [(multiply, kind, count) for multiply, kind in kinds for count in rows]
    with torch.no_grad():
        for multiply, kind, count in tqdm(jobs, "Compiling kernels", disable=not progress):
            multiply(*kind, count)
    return len(jobs)


def _multiply_4bit(
    dtype: torch.dtype, blocksize: int, quant_type: str, nested: bool, rest: int, count: int
) -> None:
    weight = torch.zeros(64, blocksize + rest, dtype=dtype, device="cpu")
    codes, state = quantize_4bit(
        weight, None, None, blocksize, compress_statistics=nested, quant_type=quant_type
    )
    matmul_4bit(weight[:1].expand(count, -1), codes, state)


def _multiply_8bit(dtype: torch.dtype, threshold: float, count: int) -> None:
    weight = torch.zeros(64, 64, dtype=torch.int8, device="cpu")
    x = torch.zeros(1, 64, dtype=dtype, device="cpu").expand(count, -1)
    ops.int8_linear(x, weight, torch.ones(64, device="cpu"), threshold, None)
