"""Just-in-time compilation: kernel sources to functions on the device in front of us."""

from bitsanywhere.backends.cuda.jit.driver import DriverError
from bitsanywhere.backends.cuda.jit.launch import Bound, LoadedKernel, current_stream
from bitsanywhere.backends.cuda.jit.loader import compile_ahead, compile_many, get_kernel
from bitsanywhere.backends.cuda.jit.nvrtc import CompilationError
from bitsanywhere.backends.cuda.jit.source import KernelSource

__all__ = [
    "Bound",
    "CompilationError",
    "DriverError",
    "KernelSource",
    "LoadedKernel",
    "compile_ahead",
    "compile_many",
    "current_stream",
    "get_kernel",
]
