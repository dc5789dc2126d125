"""Runs in a process of its own: looks at the machine, or really quantizes on one device.

    python -m bitsanywhere.cli.doctor.probe machine
    python -m bitsanywhere.cli.doctor.probe cuda:0

Prints one JSON object a line, each as soon as it is known, so that a crash loses only the rest.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bitsanywhere.errors import BitsAnywhereError
from bitsanywhere.ops.registry import OPS, Choice, load_backend

SHAPE = (192, 320)
BLOCKSIZE = 64
# NF4 of normal numbers: the relative RMS error is near 0.09 for any correct implementation.
MOST_ERROR = 0.12


def main(what: str) -> None:
    """Prints what is known of ``what``: "machine" or a device."""
    if what == "machine":
        emit("machine", machine())
        return
    device = torch.device(what)
    for name in sorted(OPS):
        emit("op", choice(name, device))
    emit("roundtrip", roundtrip(device))


def emit(kind: str, fields: dict[str, Any]) -> None:
    """One line of the report."""
    print(json.dumps({"kind": kind, **fields}), flush=True)


def machine() -> dict[str, Any]:
    """Torch, the driver, the compiler, and every device."""
    return {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "driver_cuda": _told(_driver),
        "nvrtc": _told(_nvrtc),
        "packs": _told(_packs),
        "cache": _told(_cache),
        "devices": [_cpu(), *(_gpu(index) for index in range(_gpus()))],
    }


def choice(name: str, device: torch.device) -> dict[str, Any]:
    """Which implementation an op takes on a device for an ordinary call, and why."""
    sample = SAMPLES.get(name)
    if sample is not None:
        found = OPS[name].explain(*sample(device))
    else:
        kernels, problem = load_backend(device.type)
        ours = name in kernels
        reasons = () if ours else (problem or "no kernel here",)
        found = Choice(
            name, device.type, f"{device.type} kernel" if ours else "torch reference", reasons
        )
    return {
        "op": found.op,
        "device": str(device),
        "implementation": found.implementation,
        "reasons": list(found.reasons),
    }


def roundtrip(device: torch.device) -> dict[str, Any]:
    """Quantizes, dequantizes and multiplies on a device, and compares.

    Returns:
        ``error``: relative RMS error of the roundtrip; ``matmul_error``: of the quantized product
        against the product with the dequantized weight; ``ok``; ``seconds``, with compilation.
    """
    from bitsanywhere import functional
    from bitsanywhere.autograd import matmul_4bit

    start = time.perf_counter()
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    inputs = torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(1)).to(device)
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCKSIZE, quant_type="nf4")
    back = functional.dequantize_4bit(packed, state)
    product = matmul_4bit(inputs, packed.t(), state)
    error = _relative(back, weight)
    matmul_error = _relative(product, inputs @ back.t())
    return {
        "ok": error < MOST_ERROR and matmul_error < 1e-3,
        "error": error,
        "matmul_error": matmul_error,
        "seconds": time.perf_counter() - start,
    }


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative RMS error, in float64 on the CPU; NaN never passes a bound."""
    a, b = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def _weight(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Storage and statistics of a packed weight; their content does not matter."""
    elements = SHAPE[0] * SHAPE[1]
    packed = torch.zeros((elements // 2, 1), dtype=torch.uint8, device=device)
    return packed, torch.ones(elements // BLOCKSIZE, device=device)


def _quantize_4bit(device: torch.device) -> tuple[Any, ...]:
    return torch.zeros(SHAPE, device=device, dtype=torch.bfloat16), BLOCKSIZE, "nf4", torch.uint8


def _dequantize_4bit(device: torch.device) -> tuple[Any, ...]:
    packed, absmax = _weight(device)
    return packed, absmax, BLOCKSIZE, "nf4", list(SHAPE), torch.bfloat16


def _quantize_blockwise(device: torch.device) -> tuple[Any, ...]:
    code = torch.linspace(-1, 1, 256, device=device)
    return torch.zeros(SHAPE, device=device, dtype=torch.bfloat16), code, 256


def _dequantize_blockwise(device: torch.device) -> tuple[Any, ...]:
    codes = torch.zeros(SHAPE, device=device, dtype=torch.uint8)
    statistics = torch.ones(SHAPE[0] * SHAPE[1] // 256, device=device)
    return codes, statistics, torch.linspace(-1, 1, 256, device=device), 256, torch.bfloat16


def _gemm_4bit(device: torch.device) -> tuple[Any, ...]:
    packed, absmax = _weight(device)
    inputs = torch.zeros((3, SHAPE[1]), device=device, dtype=torch.bfloat16)
    return inputs, packed, list(SHAPE), absmax, BLOCKSIZE, "nf4", None, None, None, None


def _gemv_4bit(device: torch.device) -> tuple[Any, ...]:
    packed, absmax = _weight(device)
    inputs = torch.zeros((1, SHAPE[1]), device=device, dtype=torch.bfloat16)
    return inputs, packed, list(SHAPE), absmax, torch.linspace(-1, 1, 16, device=device), BLOCKSIZE


# Ordinary calls of each op, bfloat16 and NF4.
SAMPLES: dict[str, Callable[[torch.device], tuple[Any, ...]]] = {
    "quantize_4bit": _quantize_4bit,
    "dequantize_4bit": _dequantize_4bit,
    "quantize_blockwise": _quantize_blockwise,
    "dequantize_blockwise": _dequantize_blockwise,
    "gemm_4bit": _gemm_4bit,
    "gemv_4bit": _gemv_4bit,
}


def _told(look: Callable[[], Any]) -> dict[str, Any]:
    """What ``look`` finds, or the typed error that it ends in."""
    try:
        return {"found": look()}
    except BitsAnywhereError as error:
        return {"problem": " ".join(part for part in (error.what, error.why) if part)}


def _driver() -> str:
    from bitsanywhere.backends.cuda.jit.driver import Driver

    major, minor = Driver().version
    return f"{major}.{minor}"


def _nvrtc() -> dict[str, Any]:
    from bitsanywhere.backends.cuda.jit import nvrtc

    found = nvrtc.find()
    return {
        "version": f"{found.version[0]}.{found.version[1]}",
        "path": found.path,
        "archs": [f"sm_{arch}" for arch in found.archs],
    }


def _packs() -> list[str]:
    from bitsanywhere.backends.cuda.jit import packs
    from bitsanywhere.settings import settings

    installed = packs.InstalledPacks(settings().pack_dir)
    found = [" ".join(manifest.archs) for manifest in installed.manifests.values()]
    return [*found, *(f"damaged: {problem}" for problem in installed.problems)]


def _cache() -> dict[str, Any]:
    from bitsanywhere.backends.cuda.jit.cache import check_private
    from bitsanywhere.settings import settings

    folder = settings().cache_dir
    if folder.is_dir():
        check_private(folder, "BITSANYWHERE_CACHE_DIR")
    sizes = [each.stat().st_size for each in folder.rglob("*") if each.is_file()]
    return {"path": str(folder), "files": len(sizes), "megabytes": round(sum(sizes) / 2**20, 1)}


def _gpus() -> int:
    """How many GPUs torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "arch": properties.major * 10 + properties.minor,
        "gigabytes": round(properties.total_memory / 2**30, 1),
        "integrated": bool(getattr(properties, "is_integrated", False)),
    }


def _cpu() -> dict[str, Any]:
    try:
        from bitsanywhere.backends.cpu.machine import Machine

        level = Machine.of().level
    except ImportError:
        level = "numba is not installed"
    return {"device": "cpu", "name": level, "arch": None, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main(sys.argv[1])
