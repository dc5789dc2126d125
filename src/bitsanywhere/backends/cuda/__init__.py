"""Kernels for NVIDIA GPUs, compiled for the chip in front of us.

`<op>.py` chooses a configuration and launches; `<op>.cuh` is the device code; `jit` compiles it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.backends.cuda import (
    dequantize_4bit,
    dequantize_blockwise,
    gemm_4bit,
    gemv_4bit,
    quantize_4bit,
    quantize_blockwise,
)
from bitsanywhere.backends.cuda.gemm_4bit_config import DequantizeConfig, choose
from bitsanywhere.backends.cuda.jit import KernelSource
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target


def load() -> dict[str, Kernel]:
    """The kernels by op name.

    Raises:
        BackendUnavailable: torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "The CUDA backend is not available.",
            "torch.cuda.is_available() is False.",
            "Install a torch built for CUDA, and check the driver with nvidia-smi.",
        )
    return {
        "quantize_4bit": quantize_4bit.KERNEL,
        "dequantize_4bit": dequantize_4bit.KERNEL,
        "quantize_blockwise": quantize_blockwise.KERNEL,
        "dequantize_blockwise": dequantize_blockwise.KERNEL,
        "gemm_4bit": gemm_4bit.KERNEL,
        "gemv_4bit": gemv_4bit.KERNEL,
    }


def kernel_sources(target: Target) -> list[KernelSource]:
    """Every kernel in every configuration that a call on that chip may ask for."""
    modules = (quantize_4bit, dequantize_4bit, quantize_blockwise, dequantize_blockwise, gemm_4bit)
    return [source for module in modules for source in module.sources(target)]


def sources_for(
    weights: Sequence[tuple[int, int, torch.dtype, int, str, bool]],
    rows: Sequence[int],
    target: Target,
) -> list[KernelSource]:
    """The kernels that products with some weights need, and their gradients.

    Args:
        weights: (n, k, dtype of the product, blocksize, quant_type, nested) of each.
        rows: row counts of the activations.
    """
    found: dict[KernelSource, None] = {}
    for n, k, dtype, blocksize, _, nested in weights:
        found[dequantize_4bit.source(dtype)] = None
        if nested:
            copies = dequantize_blockwise.choose(target).copies
            found[dequantize_blockwise.source(torch.float32, copies)] = None
        for m in rows:
            config = choose(m, n, k, dtype, blocksize, target)
            if not isinstance(config, DequantizeConfig):
                found[config.source(dtype, nested)] = None
    return list(found)
