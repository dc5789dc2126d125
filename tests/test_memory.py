"""Quantizing takes little memory beyond its result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from bitsanywhere import functional as F
from bitsanywhere.ops import registry
if sys.argv[1] == "reference":
    registry.load_backend = lambda device: ({}, None)
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) << 10
options = dict(quant_type="nf4", compress_statistics=True)
small = torch.randn(64, 4096).bfloat16()
F.dequantize_4bit(*F.quantize_4bit(small, **options))
weight = torch.empty(8192, 4096, dtype=torch.bfloat16).normal_()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
codes, state = F.quantize_4bit(weight, **options)
result = codes.numel() + state.absmax.numel()
extra = status("VmHWM") - before - result
print(extra / (weight.numel() * 2))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("implementation", ["reference", "backend"])
def test_peak_of_quantizing(implementation):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, implementation], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 0.3
