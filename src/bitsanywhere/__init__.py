"""k-bit quantization for PyTorch on whichever processor is at hand.

The names are bitsandbytes': ``import bitsanywhere as bnb`` gives ``bnb.nn.Linear4bit``,
``bnb.functional.quantize_4bit``, ``bnb.matmul_4bit``. Importing needs no GPU, compiler or network;
kernels are compiled for the processor in front of them on first use.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsanywhere.version import __version__

if TYPE_CHECKING:
    from bitsanywhere import functional, nn, optim
    from bitsanywhere.autograd import MatMul4Bit, MatmulLtState, matmul, matmul_4bit
    from bitsanywhere.warmup import warmup

features = {"multi_backend"}
supported_torch_devices = {"cpu", "cuda"}
_NEED_TORCH = {
    "MatMul4Bit": "autograd",
    "MatmulLtState": "autograd",
    "matmul": "autograd",
    "matmul_4bit": "autograd",
    "warmup": "warmup",
}
_MODULES = ("autograd", "functional", "nn", "ops", "optim", "utils")


def __getattr__(name: str) -> Any:
    """Loads what needs torch; only our command, which may not, leaves that to first use."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
    globals()[name] = value
    return value


if not sys.argv or Path(sys.argv[0]).stem not in ("bitsanywhere", "-m"):
    for _name in (*_MODULES, *_NEED_TORCH):
        __getattr__(_name)

__all__ = [
    "MatMul4Bit",
    "MatmulLtState",
    "__version__",
    "features",
    "functional",
    "matmul",
    "matmul_4bit",
    "nn",
    "optim",
    "supported_torch_devices",
    "warmup",
]
