"""k-bit quantization for PyTorch on whichever processor is at hand.

The names are bitsandbytes': ``import bitsanywhere as bnb`` gives ``bnb.nn.Linear4bit``,
``bnb.functional.quantize_4bit``, ``bnb.matmul_4bit``. Importing needs no GPU, compiler or network;
kernels are compiled for the processor in front of them on first use.
"""

from bitsanywhere import functional, nn
from bitsanywhere.autograd import MatMul4Bit, matmul_4bit
from bitsanywhere.version import __version__

features = {"multi_backend"}
supported_torch_devices = {"cpu", "cuda"}

__all__ = [
    "MatMul4Bit",
    "__version__",
    "features",
    "functional",
    "matmul_4bit",
    "nn",
    "supported_torch_devices",
]
