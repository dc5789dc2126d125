"""Run with the package of a checkout and with that of its wheel; both have to print the same JSON.

Public docstrings, the digests of the CUDA kernels, and what a 4-bit roundtrip on the CPU gives.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from typing import Any

import torch

import bitsanywhere
from bitsanywhere.backends.cuda import kernel_sources
from bitsanywhere.targets import known

PUBLIC = (
    *("", ".autograd", ".checkpoint", ".compat", ".errors", ".formats", ".functional", ".nn"),
    *(".nn.modules", ".nn.parametrize", ".optim", ".optim.optimizer", ".quant_state", ".settings"),
    *(".utils", ".arch", ".convert.options", ".convert.quantize", ".validate"),
)


def docstrings() -> dict[str, str | None]:
    """Those of public modules, their public names, and these classes' public methods."""
    found: dict[str, str | None] = {}
    for name in PUBLIC:
        module = importlib.import_module(f"bitsanywhere{name}")
        found[module.__name__] = module.__doc__
        exported = getattr(module, "__all__", ())
        for key, value in vars(module).items():
            home = getattr(value, "__module__", "")
            if key not in exported and (key.startswith("_") or home != module.__name__):
                continue
            found[f"{module.__name__}.{key}"] = value.__doc__
            for method in vars(value) if inspect.isclass(value) else ():
                if not method.startswith("_") or method == "__init__":
                    found[f"{module.__name__}.{key}.{method}"] = getattr(value, method).__doc__
    return found


def roundtrip() -> str:
    """A digest of packed codes and of what they stand for."""
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    packed, state = bitsanywhere.functional.quantize_4bit(weight, quant_type="nf4")
    back = bitsanywhere.functional.dequantize_4bit(packed, state)
    assert 0.05 < float((back - weight).norm() / weight.norm()) < 0.12
    return hashlib.sha256(packed.numpy().tobytes() + back.numpy().tobytes()).hexdigest()


def report() -> dict[str, Any]:
    """Everything, and where the package lies."""
    chips = [known(name) for name in ("orin-nano", "h100")]
    return {
        "file": bitsanywhere.__file__,
        "docstrings": docstrings(),
        "kernels": [source.digest() for chip in chips for source in kernel_sources(chip)],
        "roundtrip": roundtrip(),
    }


if __name__ == "__main__":
    print(json.dumps(report()))
