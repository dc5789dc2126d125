"""int8_linear_matmul on CPUs; see `int8_product.py`."""

from __future__ import annotations

from bitsanywhere.backends.cpu.int8_product import matmul
from bitsanywhere.ops.registry import Kernel

KERNEL = Kernel(run=matmul, why_not=lambda *args: None)
