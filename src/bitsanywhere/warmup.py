"""Compiling what a model needs before it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from bitsanywhere.autograd import matmul_4bit
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.functional import quantize_4bit
from bitsanywhere.nn import Linear4bit

ROWS = (1, 8, 16, 32, 64, 4096)


def warmup(model: torch.nn.Module, rows: Sequence[int] = ROWS, progress: bool = True) -> int:
    """Compiles, in parallel, every kernel that the 4-bit layers of a model will use.

    Call it once after loading, before the first batch or the first CUDA graph capture. Compiled
    kernels stay in the cache on disk, so that the next process finds them there.

    Args:
        model: a model whose 4-bit layers are quantized, on their devices.
        rows: row counts of the inputs to be ready for; each stands for those near it.
        progress: show a progress bar.

    Returns:
        How many kernels (CUDA) or calls (CPU) were made ready.

    Raises:
        InvalidArgumentError: if the model has no quantized 4-bit layer.
        UnsupportedDeviceError: if a kernel cannot run on its device.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, Linear4bit) and getattr(module.weight, "quant_state", None)
    ]
    if not layers:
        raise InvalidArgumentError(
            f"warmup: {type(model).__name__} has no quantized 4-bit layer",
            mend='Move it to its device first: model.to("cuda").',
        )
    cuda = [layer for layer in layers if layer.weight.is_cuda]
    other = [layer for layer in layers if not layer.weight.is_cuda]
    return _compile_cuda(cuda, rows, progress) + _call(other, rows, progress)


def _dtype(layer: Linear4bit) -> torch.dtype:
    """What the layer multiplies in: its compute dtype, else that of the quantized weight."""
    return layer.compute_dtype or layer.weight.quant_state.dtype


def _compile_cuda(layers: Sequence[Linear4bit], rows: Sequence[int], progress: bool) -> int:
    if not layers:
        return 0
    from bitsanywhere.backends.cuda import sources_for
    from bitsanywhere.backends.cuda.jit import compile_many
    from bitsanywhere.targets import Target

    count = 0
    for index in sorted({layer.weight.get_device() for layer in layers}):
        target = Target.of(torch.device("cuda", index))
        wanted = {
            (*layer.weight.quant_state.shape, _dtype(layer), layer.weight.quant_state.blocksize,
             layer.weight.quant_state.quant_type, layer.weight.quant_state.nested)
            for layer in layers if layer.weight.get_device() == index
        }  # fmt: skip
        sources = sources_for(sorted(wanted, key=str), rows, target)
        count += len(compile_many(sources, target, index, progress))
    return count


def _call(layers: Sequence[Linear4bit], rows: Sequence[int], progress: bool) -> int:
    """A small product for each kind of layer and row count: CPU kernels compile on first use.

    Which kernel a layer needs depends on how K divides into blocks, not on how large it is.
    """
    kinds = set()
    for layer in layers:
        state = layer.weight.quant_state
        partial = state.shape[1] % state.blocksize
        kinds.add((_dtype(layer), state.blocksize, state.quant_type, state.nested, partial))
    jobs = [(kind, count) for kind in sorted(kinds, key=str) for count in rows]
    with torch.no_grad():
        for kind, count in tqdm(jobs, "Compiling kernels", disable=not progress):
            dtype, blocksize, quant_type, nested, partial = kind
            weight = torch.zeros(64, blocksize + partial, dtype=dtype, device="cpu")
            codes, state = quantize_4bit(
                weight, None, None, blocksize, compress_statistics=nested, quant_type=quant_type
            )
            matmul_4bit(weight[:1].expand(count, -1), codes, state)
    return len(jobs)
