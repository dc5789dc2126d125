"""Kernels for NVIDIA GPUs, compiled for the chip in front of us.

`<op>.py` chooses a configuration and launches; `<op>.cuh` is the device code; `jit` compiles it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.ops.registry import Kernel, LazyKernels

if TYPE_CHECKING:
    from bitsanywhere.backends.cuda.jit import KernelSource
    from bitsanywhere.targets import Target

# Op -> (module, name of its kernel there). Modules are imported when first used: importing all of
# them takes as long as a model's first forward on a warm cache.
_KERNELS = {
    "quantize_4bit": ("quantize_4bit", "KERNEL"),
    "nest_absmax": ("nest_absmax", "KERNEL"),
    "dequantize_4bit": ("dequantize_4bit", "KERNEL"),
    "dequantize_4bit_nested": ("dequantize_4bit_nested", "KERNEL"),
    "quantize_blockwise": ("quantize_blockwise", "KERNEL"),
    "dequantize_blockwise": ("dequantize_blockwise", "KERNEL"),
    "gemm_4bit": ("gemm_4bit", "KERNEL"),
    "gemv_4bit": ("gemv_4bit", "KERNEL"),
    "int8_vectorwise_quant": ("int8_vectorwise_quant", "KERNEL"),
    "int8_double_quant": ("int8_double_quant", "KERNEL"),
    "int8_linear_matmul": ("int8_linear_matmul", "KERNEL"),
    "int8_mm_dequant": ("int8_mm_dequant", "KERNEL"),
    "int8_scaled_mm": ("int8_scaled_mm", "KERNEL"),
    "int8_mixed_scaled_mm": ("int8_mixed_scaled_mm", "KERNEL"),
    "int8_linear": ("int8_linear", "KERNEL"),
    "optimizer_update_32bit": ("optimizer_update_32bit", "KERNEL"),
    "optimizer_update_32bit_multi": ("optimizer_update_32bit", "KERNEL_MULTI"),
    "optimizer_update_8bit_blockwise": ("optimizer_update_8bit_blockwise", "KERNEL"),
    "optimizer_update_8bit_blockwise_multi": ("optimizer_update_8bit_blockwise", "KERNEL_MULTI"),
}
# Modules with a function `sources`.
_SOURCES = (
    "quantize_4bit",
    "nest_absmax",
    "dequantize_4bit",
    "quantize_blockwise",
    "dequantize_blockwise",
    "gemm_4bit",
    "int8_vectorwise_quant",
    "int8_double_quant",
    "int8_gemm",
    "optimizer_update_32bit",
    "optimizer_update_8bit_blockwise",
)


def load() -> Mapping[str, Kernel]:
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
    return LazyKernels(__name__, _KERNELS)


def kernel_sources(target: Target) -> list[KernelSource]:
    """Every kernel in every configuration that a call on that chip may ask for."""
    modules = [importlib.import_module(f"{__name__}.{name}") for name in _SOURCES]
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
    from bitsanywhere.backends.cuda.dequantize_4bit import source
    from bitsanywhere.backends.cuda.gemm_4bit_config import choose
    from bitsanywhere.backends.cuda.gemm_4bit_kernels import DequantizeConfig

    found: dict[KernelSource, None] = {}
    for n, k, dtype, blocksize, _, nested in weights:
        found[source(dtype, nested)] = None
        for m in rows:
            config = choose(m, n, k, dtype, blocksize, target, nested=nested)
            if not isinstance(config, DequantizeConfig):
                found[config.source(dtype)] = None
    return list(found)


def sources_for_int8(
    weights: Sequence[tuple[int, int, torch.dtype]], rows: Sequence[int], target: Target
) -> list[KernelSource]:
    """The kernels that int8_linear needs with some weights.

    Args:
        weights: (n, k, dtype of the activations) of each.
        rows: row counts of the activations.
    """
    from bitsanywhere.backends.cuda import int8_gemm_config, int8_vectorwise_quant

    found: dict[KernelSource, None] = {}
    for n, k, dtype in weights:
        for m in rows:
            quantizing = int8_vectorwise_quant.choose(m, k, k % 8 == 0, target)
            found[quantizing.source(dtype)] = None
            config = int8_gemm_config.choose(m, n, k, target)
            if isinstance(config, int8_gemm_config.LibraryConfig):
                found[int8_gemm_config.DEQUANT] = None
            else:
                found[config.source(dtype)] = None
    return list(found)
