"""Every kernel compiles for every architecture, without spills, within the chip's shared memory."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere.backends.cuda import gemm_4bit_config, kernel_sources
from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.compiler import compile_source
from bitsanywhere.backends.cuda.jit.elf import architecture
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.targets import Target, for_arch

ARCHS = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
# Static shared memory that needs no leave.
MOST_STATIC = 48 * 1024


@pytest.fixture(scope="module")
def newest() -> nvrtc.Nvrtc:
    """The newest NVRTC installed."""
    try:
        return nvrtc.find()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def check(source: KernelSource, target: Target, compiler: nvrtc.Nvrtc) -> None:
    """Compiles a kernel and looks at what came out."""
    compiled = compile_source(source, target.arch, nvrtc=compiler)
    assert f"sm_{architecture(compiled.cubin)}" == target.arch
    assert compiled.spill_bytes == 0, (source.entry, source.defines)
    assert compiled.shared_bytes is not None
    assert compiled.shared_bytes <= MOST_STATIC
    assert "C7518" not in compiled.log, "wgmma is serialized"


def some(sources: list[KernelSource]) -> list[KernelSource]:
    """One kernel of each file, and every gemm_4bit kernel for bfloat16 with nested scales."""
    first = {source.file: source for source in reversed(sources)}
    wanted = {("DTYPE", 2), ("NESTED", 1), ("CHUNK", 64)}
    gemm = [source for source in sources if wanted <= set(source.defines)]
    return list(dict.fromkeys([*first.values(), *gemm]))


@pytest.mark.parametrize("arch", ARCHS)
def test_a_selection_compiles(arch, newest):
    if arch not in newest.archs:
        pytest.skip(f"NVRTC {newest.version} does not know sm_{arch}")
    target = for_arch(f"sm_{arch}")[0]
    for source in some(kernel_sources(target)):
        check(source, target, newest)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_everything_compiles(arch, newest):
    if arch not in newest.archs:
        pytest.skip(f"NVRTC {newest.version} does not know sm_{arch}")
    done = set()
    for target in for_arch(f"sm_{arch}"):
        for source in kernel_sources(target):
            if source not in done:
                done.add(source)
                check(source, target, newest)


def test_shared_memory_is_what_the_configuration_says(newest):
    target = for_arch("sm_90")[0]
    for config in gemm_4bit_config.every_config(torch.bfloat16, target):
        if isinstance(config, gemm_4bit_config.GeneralConfig):
            continue
        compiled = compile_source(config.source(torch.bfloat16, True), target.arch, nvrtc=newest)
        assert compiled.shared_bytes is not None
        assert compiled.shared_bytes + config.stages_bytes <= config.shared_memory
