"""The CPU backend: kernels that numba and LLVM compile for the processor in front of them."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from importlib.util import find_spec

from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.ops.registry import Kernel

_OPS = (
    "quantize_4bit",
    "dequantize_4bit",
    "dequantize_4bit_nested",
    "nest_absmax",
    "gemm_4bit",
    "gemv_4bit",
    "quantize_blockwise",
    "dequantize_blockwise",
    "int8_vectorwise_quant",
    "int8_vectorwise_dequant",
    "int8_linear_matmul",
    "int8_mm_dequant",
    "int8_scaled_mm",
    "int8_mixed_scaled_mm",
    "int8_linear",
    "optimizer_update_32bit",
    "optimizer_update_32bit_multi",
    "optimizer_update_8bit_blockwise",
    "optimizer_update_8bit_blockwise_multi",
)
_NUMBA = (0, 62)


def load() -> dict[str, Kernel]:
    """The kernels by op name; compiles nothing yet.

    Raises:
        BackendUnavailable: numba is not installed, or the machine is big-endian.
    """
    if sys.byteorder != "little":
        raise BackendUnavailable("CPU kernels: this machine is big-endian", "They need the other.")
    for module in ("numba", "llvmlite"):
        if find_spec(module) is None:
            raise BackendUnavailable(
                f"CPU kernels need {module}, which is not installed",
                "Without it CPU ops run in plain torch, many times slower.",
                'Install it: pip install "bitsanywhere[cpu]"',
            )
    found = tuple(int(part) for part in version("numba").split(".")[:2])
    if found < _NUMBA:
        raise BackendUnavailable(
            f"CPU kernels: numba is {version('numba')}",
            f"They need {'.'.join(map(str, _NUMBA))} or newer.",
            'Update it: pip install -U "bitsanywhere[cpu]"',
        )
    return {op: importlib.import_module(f"{__name__}.{op}").KERNEL for op in _OPS}
