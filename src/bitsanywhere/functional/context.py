"""Names of bitsandbytes that describe its native library, kept for programs that import them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# The largest int8 magnitude of LLM.int8().
C = 127.0


class CUBLAS_Context:
    """Stands for bitsandbytes' handle of cuBLAS; torch keeps its own, so there is nothing in it."""

    _instance: CUBLAS_Context | None = None

    def __init__(self):
        raise RuntimeError("CUBLAS_Context has one instance: call CUBLAS_Context.get_instance().")

    def initialize(self):
        """Nothing to do."""

    @classmethod
    def get_instance(cls):
        """The one instance."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def get_context(self, device):
        """torch's cuBLAS handle of the current stream on ``device``, an address."""
        import torch

        with torch.cuda.device(device):
            return torch.cuda.current_blas_handle()


@cache
def has_avx512bf16():
    """Whether the processor multiplies bfloat16 pairs (AVX512-BF16). No weight is ever repacked
    for it here."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
