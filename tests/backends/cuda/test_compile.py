"""Every kernel compiles for every architecture, without spills, within the chip's shared memory."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bitsanywhere.backends.cuda import gemm_4bit_config, kernel_sources
from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.compiler import CompilationError, compile_source
from bitsanywhere.backends.cuda.jit.elf import architecture
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.targets import Target, for_arch, known

ARCHS = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
# What NVRTC 12.6, that of JetPack 6.2, knows of them.
ARCHS_12_6 = (75, 80, 86, 87, 89, 90)
REPOSITORY = Path(__file__).parents[3]
# Static shared memory that needs no leave.
MOST_STATIC = 48 * 1024


@pytest.fixture(scope="module")
def newest() -> nvrtc.Nvrtc:
    """The newest NVRTC installed."""
    try:
        return nvrtc.find()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def nvrtc_12_6() -> nvrtc.Nvrtc:
    """From the folder NVRTC12, into which nvidia-cuda-nvrtc-cu12==12.6.* was installed."""
    folder = Path(os.environ.get("NVRTC12", REPOSITORY / "build" / "nvrtc12"))
    found = sorted(folder.glob("**/libnvrtc.so.12"))
    if not found:
        pytest.skip(f"NVRTC 12.6 is not in {folder}; NVRTC12 names another")
    return nvrtc.Nvrtc(found[0])


def problems(source: KernelSource, arch: str, compiler: nvrtc.Nvrtc) -> Iterator[str]:
    """Compiles a kernel and says what is wrong with it."""
    try:
        compiled = compile_source(source, arch, nvrtc=compiler)
    except CompilationError as error:
        yield str(error)
        return
    if f"sm_{architecture(compiled.cubin)}" != arch:
        yield f"is for sm_{architecture(compiled.cubin)}"
    if compiled.spill_bytes != 0:
        yield f"spills {compiled.spill_bytes} bytes"
    if compiled.shared_bytes is None or compiled.shared_bytes > MOST_STATIC:
        yield f"takes {compiled.shared_bytes} bytes of static shared memory"
    # C7517, a wait for results that are used next, is harmless. The ptxas of CUDA 12.6 serializes
    # all of our wgmma (C7515): right, but slower.
    if compiler.version >= (13, 0) and re.search(r"\(C75(?!17)\d\d\)|setmaxnreg", compiled.log):
        yield "wgmma is serialized, or setmaxnreg ignored"


def check_all(sources: list[KernelSource], arch: str, compiler: nvrtc.Nvrtc) -> None:
    """Compiles kernels on all cores (NVRTC is called without the interpreter's lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda source: list(problems(source, arch, compiler)), sources)
        bad = [f"{s.entry} {s.defines}: {p}" for s, ps in zip(sources, found) for p in ps]
    assert not bad, "\n".join(bad)


def sources_of(arch: int) -> list[KernelSource]:
    targets = for_arch(f"sm_{arch}")
    return list(dict.fromkeys(source for target in targets for source in kernel_sources(target)))


@pytest.mark.parametrize("arch", ARCHS)
def test_everything_compiles(arch, newest):
    if arch not in newest.archs:
        pytest.skip(f"NVRTC {newest.version} does not know sm_{arch}")
    check_all(sources_of(arch), f"sm_{arch}", newest)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS_12_6)
def test_everything_compiles_with_nvrtc_12_6(arch, nvrtc_12_6):
    check_all(sources_of(arch), f"sm_{arch}", nvrtc_12_6)


def test_a_bad_kernel_is_found(newest, tmp_path):
    lines = "".join(f"  float a{i} = x[{i}];\n" for i in range(300))
    use = " + ".join(f"a{i} * later" for i in range(300))
    text = f"""
extern "C" __global__ void __launch_bounds__(1024) bad(volatile float* x) {{
{lines}  float later = x[300];
  x[0] = {use};
}}"""
    (tmp_path / "bad.cuh").write_text(text)
    with pytest.raises(AssertionError, match="spills"):
        check_all([KernelSource("bad.cuh", "bad", root=str(tmp_path))], "sm_80", newest)


def hopper() -> Target:
    return known("h100")


def test_shared_memory_is_what_the_configuration_says(newest):
    static: dict[KernelSource, int | None] = {}
    for config in gemm_4bit_config.every_config(torch.bfloat16, hopper()):
        if isinstance(config, gemm_4bit_config.GeneralConfig):
            continue
        source = config.source(torch.bfloat16)
        if source not in static:
            static[source] = compile_source(source, "sm_90", nvrtc=newest).shared_bytes
        taken = static[source]
        assert taken is not None
        assert taken + config.stages_bytes <= config.shared_memory


def test_tensor_maps_lie_at_a_multiple_of_64(newest):
    config = gemm_4bit_config.choose(64, 4096, 4096, torch.bfloat16, 64, hopper())
    compiled = compile_source(config.source(torch.bfloat16), "sm_90", nvrtc=newest)
    assert compiled.parameters == "<120s56s128s"
    # Where parameters begin in constant memory, and how many bytes they are.
    found = re.search(rb"\x04\x0a\x08\x00....(..)(..)", compiled.cubin, re.DOTALL)
    start, size = struct.unpack("<HH", found[1] + found[2])
    assert size == 120 + 56 + 128
    assert (start + 120 + 56) % 64 == 0
