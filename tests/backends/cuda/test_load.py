"""The CUDA backend's table of kernels, and what a warm start does not have to import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bitsanywhere.backends import cuda
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.ops.registry import OPS, Kernel, LazyKernels
from bitsanywhere.targets import known

SCRIPT = """
import sys, torch
torch.cuda.is_available = lambda: True
import bitsanywhere
from bitsanywhere.backends import cuda
kernels = cuda.load()
for name in ("quantize_4bit", "nest_absmax", "gemm_4bit"):
    kernels.get(name)
print(*(name.removeprefix("bitsanywhere.backends.cuda.") for name in sys.modules
        if name.startswith("bitsanywhere.backends.cuda.")))
"""


def test_every_entry_is_a_kernel_of_an_op():
    kernels = LazyKernels(cuda.__name__, cuda._KERNELS)
    assert set(kernels) <= set(OPS)
    assert all(isinstance(kernel, Kernel) for kernel in kernels.values())
    assert kernels.get("nothing") is None
    assert len(kernels) == len(cuda._KERNELS)


def test_every_kernel_has_sources():
    sources = cuda.kernel_sources(known("orin-nano"))
    assert len(sources) == len(set(sources))
    assert {"quantize_4bit", "nest_absmax", "dequantize_4bit", "gemm_4bit"} <= set(cuda._SOURCES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_given():
    with pytest.raises(BackendUnavailable, match="is_available"):
        cuda.load()


def test_a_warm_start_imports_what_it_uses():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"jit.loader", "gemm_4bit", "nest_absmax"} <= imported
    assert not imported & {"jit.compiler", "jit.packs", "int8_linear", "optimizer_update_32bit"}
