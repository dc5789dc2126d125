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

from bitsanywhere.backends.cuda import gemm_4bit_config, gemm_4bit_kernels, kernel_sources
from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.compiler import CompilationError, Compiled, compile_source
from bitsanywhere.backends.cuda.jit.elf import architecture
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.backends.cuda.parameters import DTYPES
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.targets import for_arch, known

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


def problems(source: KernelSource, compiled: Compiled, arch: str, serial: bool) -> Iterator[str]:
    """What is wrong with a compiled kernel.

    Args:
        serial: whether wgmma may be serialized.
    """
    if f"sm_{architecture(compiled.cubin)}" != arch:
        yield f"is for sm_{architecture(compiled.cubin)}"
    if compiled.spill_bytes != 0:
        yield f"spills {compiled.spill_bytes} bytes"
    if compiled.shared_bytes is None or compiled.shared_bytes > MOST_STATIC:
        yield f"takes {compiled.shared_bytes} bytes of static shared memory"
    if not serial and re.search(r"\(C75\d\d\)|setmaxnreg", compiled.log):
        yield "wgmma is serialized or waited for too early, or setmaxnreg ignored"


def check_all(
    sources: list[KernelSource], arch: str, compiler: nvrtc.Nvrtc
) -> dict[KernelSource, int]:
    """Compiles kernels on all cores (NVRTC is called without the interpreter's lock).

    Returns:
        Static shared memory in bytes, by kernel.
    """
    bad: list[str] = []
    static: dict[KernelSource, int] = {}

    def check(source: KernelSource) -> None:
        try:
            compiled = compile_source(source, arch, nvrtc=compiler)
        except CompilationError as error:
            bad.append(f"{source.entry} {source.defines}: {error}")
            return
        # The ptxas of CUDA 12.6 serializes all of our wgmma (C7515): right, but slower.
        found = problems(source, compiled, arch, serial=compiler.version < (13, 0))
        bad.extend(f"{source.entry} {source.defines}: {problem}" for problem in found)
        static[source] = compiled.shared_bytes or 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(check, sources))
    assert not bad, "\n".join(bad)
    return static


def sources_of(arch: int) -> list[KernelSource]:
    targets = for_arch(f"sm_{arch}")
    return list(dict.fromkeys(source for target in targets for source in kernel_sources(target)))


@pytest.mark.parametrize("arch", ARCHS)
def test_everything_compiles(arch, newest):
    if arch not in newest.archs:
        pytest.skip(f"NVRTC {newest.version} does not know sm_{arch}")
    static = check_all(sources_of(arch), f"sm_{arch}", newest)
    for target in for_arch(f"sm_{arch}"):
        for dtype in DTYPES:
            for config in gemm_4bit_config.every_config(dtype, target):
                if not isinstance(config, gemm_4bit_kernels.GeneralConfig):
                    taken = static[config.source(dtype)] + config.stages_bytes
                    assert taken <= config.shared_memory <= target.shared_memory


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


def test_tensor_maps_lie_at_a_multiple_of_64(newest):
    config = gemm_4bit_config.choose(64, 4096, 4096, torch.bfloat16, 64, known("h100"))
    compiled = compile_source(config.source(torch.bfloat16), "sm_90", nvrtc=newest)
    assert compiled.parameters == "<120s56s128s"
    # Where parameters begin in constant memory, and how many bytes they are.
    found = re.search(rb"\x04\x0a\x08\x00....(..)(..)", compiled.cubin, re.DOTALL)
    start, size = struct.unpack("<HH", found[1] + found[2])
    assert size == 120 + 56 + 128
    assert (start + 120 + 56) % 64 == 0
