"""What the host side of several CPU kernels shares."""

from __future__ import annotations

import torch

from bitsanywhere.backends.cpu.compiler import Function
from bitsanywhere.backends.cpu.machine import host
from bitsanywhere.backends.cpu.parallel import launch, threads

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Large tasks keep two threads from faulting in the same huge page, which would clear it twice.
_SMALLEST_TASK, _LARGEST_TASK = 1 << 15, 1 << 20


def unserved(dtype: torch.dtype) -> str | None:
    """Why no kernel takes `dtype` on this processor, or None if one does."""
    if dtype == torch.float16 and not host().half:
        return "this processor has no instructions for float16"
    return None


def launch_blocks(function: Function, count: int, blocksize: int, *words: int) -> None:
    """Launches a kernel over the blocks of `count` elements; its last word is blocks a task."""
    share = min(max(count // (8 * threads()), _SMALLEST_TASK), _LARGEST_TASK)
    batch = max(1, share // blocksize)
    launch(function, -(-count // (batch * blocksize)), *words, batch)


def log2(blocksize: int) -> int:
    """The exponent of a power of two."""
    return blocksize.bit_length() - 1
