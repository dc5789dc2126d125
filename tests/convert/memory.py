"""Converts and says how much memory that took beyond what was there before.

    python memory.py SRC DST QUANT_TYPE

The last line of the output is a number of bytes. Kernels run once and the model's class is imported
before, so that libraries do not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from bitsanywhere import ops
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.quantize import quantize


def status(key: str) -> int:
    """An amount of memory of this process, in bytes: VmRSS now, VmHWM the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(source: Path, destination: Path, quant_type: str) -> None:
    ops.quantize_4bit(torch.ones(64, 64, dtype=torch.bfloat16), 64, "nf4", torch.uint8)
    ops.quantize_blockwise(torch.ones(512), torch.linspace(-1, 1, 256), 256)
    ops.int8_vectorwise_quant(torch.ones(64, 64, dtype=torch.float16), 0.0)
    assert LlamaForCausalLM
    # The most so far counts from now on.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    quantize(source, destination, Options(quant_type, double_quant=quant_type != "int8"))
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
