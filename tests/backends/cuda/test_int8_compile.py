"""The int8 kernels take the arguments and the shared memory that their launches say."""

from __future__ import annotations

import re
import struct

import pytest
import torch

from bitsanywhere.backends.cuda import int8_double_quant, int8_gemm, int8_vectorwise_quant
from bitsanywhere.backends.cuda.int8_gemm_config import RAW, WgmmaConfig, choose
from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.compiler import compile_source
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.targets import known


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Nvrtc:
    try:
        return nvrtc.find()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_arguments_have_the_size_that_is_packed(compiler):
    target = known("h100")
    small, large = choose(1, 4096, 4096, target), choose(2048, 4096, 4096, target)
    size = struct.calcsize(int8_gemm._ARGUMENTS)
    compiled = compile_source(small.source(RAW), target.arch, nvrtc=compiler)
    assert compiled.parameters == f"<{size}s"
    compiled = compile_source(large.source(RAW), target.arch, nvrtc=compiler)
    assert struct.calcsize(compiled.parameters) == struct.calcsize(int8_gemm._WITH_MAPS)
    # Offset and size of the parameters: the tensor maps' addresses are multiples of 64.
    found = re.search(rb"\x04\x0a\x08\x00....(..)(..)", compiled.cubin, re.DOTALL)
    start, length = struct.unpack("<HH", found[1] + found[2])
    assert length == size + 40 + 256
    assert (start + size + 40) % 64 == 0
    for module in (int8_vectorwise_quant, int8_double_quant):
        compiled = compile_source(module.sources(target)[0], target.arch, nvrtc=compiler)
        assert compiled.parameters == f"<{struct.calcsize(module._ARGUMENTS)}s"


@pytest.mark.parametrize("m", [64, 128, 2048])
def test_shared_memory_is_what_the_configuration_says(m, compiler):
    target = known("h100")
    config = choose(m, 4096, 4096, target)
    assert isinstance(config, WgmmaConfig)
    compiled = compile_source(config.source(torch.bfloat16), target.arch, nvrtc=compiler)
    assert compiled.shared_bytes + config.dynamic_bytes <= config.shared_memory
