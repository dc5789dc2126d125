"""Compilation with no GPU: every architecture, resources, signatures, refusals."""

from __future__ import annotations

import json

import pytest

from bitsanywhere.backends.cuda.jit import CompilationError, KernelSource, nvrtc
from bitsanywhere.backends.cuda.jit import source as source_module
from bitsanywhere.backends.cuda.jit.compiler import compile_source
from bitsanywhere.backends.cuda.jit.elf import architecture
from bitsanywhere.errors import BackendUnavailable, InvalidArgumentError, PackError

CUDA_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
CUDA_12_6 = (75, 80, 86, 87, 89, 90)


@pytest.mark.parametrize("arch", CUDA_13)
def test_newest_compiles_for_every_architecture(arch, newest_nvrtc, saxpy):
    if arch not in newest_nvrtc.archs:
        pytest.skip(f"{newest_nvrtc} does not know sm_{arch}")
    compiled = compile_source(saxpy, f"sm_{arch}", nvrtc=newest_nvrtc)
    assert architecture(compiled.cubin) == arch
    assert compiled.parameters == "<qqqqf"
    assert compiled.shared_bytes == 64 * 4
    assert compiled.spill_bytes == 0
    assert 0 < compiled.registers <= 64


@pytest.mark.parametrize("arch", CUDA_12_6)
def test_12_6_compiles_for_every_architecture_it_knows(arch, nvrtc_12_6, saxpy):
    assert nvrtc_12_6.version == (12, 6)
    compiled = compile_source(saxpy, f"sm_{arch}", nvrtc=nvrtc_12_6)
    assert architecture(compiled.cubin) == arch
    assert compiled.parameters == "<qqqqf"
    assert compiled.nvrtc == "12.6"


def test_12_6_refuses_a_later_chip(nvrtc_12_6, saxpy):
    with pytest.raises(CompilationError, match="sm_121"):
        compile_source(saxpy, "sm_121", nvrtc=nvrtc_12_6)


def test_ptx_for_a_virtual_architecture(newest_nvrtc, saxpy):
    compiled = compile_source(saxpy, "compute_87", nvrtc=newest_nvrtc)
    assert compiled.cubin == b""
    assert b".target sm_87" in compiled.image
    assert compiled.registers is None
    assert compile_source(saxpy, "sm_87", nvrtc=newest_nvrtc, ptx=True) == compiled


def test_parameters_of_every_kind_in_the_drivers_layout(newest_nvrtc, fill):
    compiled = compile_source(fill, "sm_87", nvrtc=newest_nvrtc)
    # Span (16 bytes), bool at 16, short at 18, int at 20, double at 24.
    assert compiled.parameters == "<16sB1xhid"
    nothing = KernelSource("saxpy.cuh", "nothing", fill.defines, root=fill.root)
    assert compile_source(nothing, "sm_87", nvrtc=newest_nvrtc).parameters == "<"


def test_specific_source_is_compiled_for_its_chip_only(newest_nvrtc, tmp_path):
    (tmp_path / "k.cuh").write_text(
        'extern "C" __global__ void k() { asm volatile("wgmma.fence.sync.aligned;"); }'
    )
    plain = KernelSource("k.cuh", "k", root=str(tmp_path))
    specific = KernelSource("k.cuh", "k", specific=True, root=str(tmp_path))
    with pytest.raises(CompilationError):
        compile_source(plain, "sm_90", nvrtc=newest_nvrtc)
    compiled = compile_source(specific, "sm_90", nvrtc=newest_nvrtc)
    assert compiled.arch == "sm_90a"
    assert architecture(compiled.cubin) == 90
    with pytest.raises(InvalidArgumentError, match="one chip"):
        compile_source(specific, "compute_90", nvrtc=newest_nvrtc)
    assert plain.digest() != specific.digest()


def test_spills_are_seen(newest_nvrtc, tmp_path):
    (tmp_path / "k.cuh").write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 1) k(volatile float* x, float* y) {\n'
        "  float a[96];\n#pragma unroll\n  for (int i = 0; i < 96; ++i) a[i] = x[i * 977];\n"
        "  __syncthreads();\n#pragma unroll\n"
        "  for (int i = 0; i < 96; ++i) y[i * 991] = a[i] - a[(i + 37) % 96];\n}\n"
    )
    src = KernelSource("k.cuh", "k", root=str(tmp_path))
    assert compile_source(src, "sm_87", nvrtc=newest_nvrtc).spill_bytes > 0


def test_a_refused_source_shows_the_log(newest_nvrtc, tmp_path):
    (tmp_path / "bad.cuh").write_text("int main( {")
    with pytest.raises(CompilationError, match=r"bad.cuh\(1\): error"):
        compile_source(KernelSource("bad.cuh", "k", root=str(tmp_path)), "sm_87")


def test_a_missing_entry_point_is_named(newest_nvrtc, saxpy):
    src = KernelSource(saxpy.file, "absent", saxpy.defines, root=saxpy.root)
    with pytest.raises(InvalidArgumentError, match="absent"):
        compile_source(src, "sm_87", nvrtc=newest_nvrtc)


@pytest.mark.parametrize("arch", ["87", "sm_", "sm_8", "sm_87 ", "sm_87\n", "SM_87", "sm_87x", ""])
def test_malformed_architectures_are_refused(arch, saxpy):
    with pytest.raises(InvalidArgumentError, match="sm_XX"):
        compile_source(saxpy, arch)


def test_digest_covers_headers_macros_and_options(tmp_path, monkeypatch):
    (tmp_path / "k.cuh").write_text('#include "h.cuh"\nextern "C" __global__ void k() {}')
    (tmp_path / "h.cuh").write_text("  // a\n#define H 1")
    src = KernelSource("k.cuh", "k", (("A", 1),), root=str(tmp_path))
    digests = {src.digest(), src.digest()}
    # As in a wheel, whose copies lack comments.
    (tmp_path / "h.cuh").write_text("\n#define H 1")
    source_module._file.cache_clear()
    digests.add(src.digest())
    assert len(digests) == 1
    digests.add(KernelSource("k.cuh", "k", (("A", 2),), root=str(tmp_path)).digest())
    (tmp_path / "h.cuh").write_text("\n#define H 2")
    source_module._file.cache_clear()
    digests.add(src.digest())
    monkeypatch.setattr(source_module, "OPTIONS", ("--fmad=false",))
    digests.add(src.digest())
    assert len(digests) == 4


@pytest.mark.parametrize("name", ["../secret.cuh", "/etc/passwd", "missing.cuh"])
def test_includes_stay_in_the_folder(name, tmp_path):
    (tmp_path / "k.cuh").write_text(f'#include "{name}"\n')
    (tmp_path.parent / "secret.cuh").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"included by k\.cuh"):
        KernelSource("k.cuh", "k", root=str(tmp_path)).read()


def test_names_must_be_identifiers():
    with pytest.raises(InvalidArgumentError, match="identifier"):
        KernelSource("k.cuh", "k", (("A B", 1),))
    with pytest.raises(InvalidArgumentError, match="identifier"):
        KernelSource("k.cuh", "k()")


def test_something_else_is_no_nvrtc(tmp_path):
    (tmp_path / "libnvrtc.so.13").write_bytes(b"not a library")
    with pytest.raises(InvalidArgumentError, match="not a libnvrtc"):
        nvrtc.Nvrtc(tmp_path / "libnvrtc.so.13")
    with pytest.raises(InvalidArgumentError, match="not a libnvrtc"):
        nvrtc.Nvrtc("libc.so.6")


def test_no_nvrtc_newer_than_the_driver_is_chosen(nvrtc_12_6, monkeypatch):
    asked = []
    monkeypatch.setattr(nvrtc, "_candidates", lambda major: asked.append(major) or [])
    with pytest.raises(BackendUnavailable, match="cuda12"):
        nvrtc.search(12)
    assert asked == [12]
    with pytest.raises(BackendUnavailable, match="Update the driver"):
        nvrtc.search(11)
    monkeypatch.setattr(
        nvrtc, "_candidates", lambda major: ["absent.so", nvrtc_12_6.path][: 14 - major]
    )
    # Of CUDA 13 there is none, so 12.6 is taken for a driver of CUDA 13 too.
    assert nvrtc.search(13).version == (12, 6)


def test_a_known_library_is_loaded_only_to_compile(newest_nvrtc, saxpy, monkeypatch):
    identity = json.loads(json.dumps(newest_nvrtc.identity))
    known = nvrtc.Nvrtc(newest_nvrtc.path, identity)
    assert (known.version, known.archs) == (newest_nvrtc.version, newest_nvrtc.archs)
    assert "_library" not in vars(known)
    assert compile_source(saxpy, "sm_80", nvrtc=known).cubin
    size, _ = identity[0]
    for other in ([[size, 1], [1, 2], [3]], [identity[0], "13.0", [80]], [identity[0], [1, 2], []]):
        asked = nvrtc.Nvrtc(newest_nvrtc.path, other)
        assert (asked.version, asked.archs) == (newest_nvrtc.version, newest_nvrtc.archs)


def test_elf_headers_of_both_layouts(cubin):
    assert architecture(cubin(87, abi=0x33)) == 87
    assert architecture(cubin(121, abi=0x41)) == 121


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01" + bytes(20), b"MZ" + bytes(100), b"\x7fELF\x02\x01" * 20]
)
def test_other_files_are_no_cubins(content):
    with pytest.raises(PackError):
        architecture(content)


def test_unknown_elf_abi_is_refused(cubin):
    content = bytearray(cubin(87))
    content[7] = 0x42
    with pytest.raises(PackError, match="ABI"):
        architecture(bytes(content))
