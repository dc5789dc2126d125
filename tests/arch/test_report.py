"""The audit as a whole, on wheels put together from fixtures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitsanywhere.arch
from bitsanywhere.arch import audit, audit_installed, find_device
from bitsanywhere.arch.explain import explain
from bitsanywhere.arch.report import parse_cuda
from bitsanywhere.errors import AuditError, InvalidArgumentError
from tests.arch.binaries import PTX, container, cubin, elf, entry, wheel

FIXTURES = Path(__file__).parent / "fixtures"


def linked(*arches: int, ptx: int, isa: tuple[int, int]) -> bytes:
    """A library as bitsandbytes builds them: linked code, and objects that keep one PTX."""
    objects = [entry(arch) for arch in arches] + [entry(ptx, PTX, isa=isa)]
    return elf(
        {
            "__nv_relfatbin": container(*objects) * 2,
            ".nv_fatbin": container(*[entry(arch) for arch in arches]),
            ".dynstr": b"\0libcublas.so.%d\0" % (isa[0] + 4),
        }
    )


@pytest.fixture
def bitsandbytes(tmp_path: Path) -> str:
    """The architectures of the 0.50.2 wheel for aarch64, without its code."""
    path = tmp_path / "bitsandbytes-0.50.2-py3-none-manylinux_2_24_aarch64.whl"
    path.write_bytes(
        wheel(
            {
                "bitsandbytes/libbitsandbytes_cpu.so": elf({".text": b"\0"}),
                "bitsandbytes/libbitsandbytes_cuda126.so": linked(75, 80, 90, ptx=90, isa=(8, 5)),
                "bitsandbytes/libbitsandbytes_cuda130.so": linked(
                    75, 80, 90, 100, 110, 120, 121, ptx=121, isa=(9, 0)
                ),
            }
        )
    )
    return str(path)


@pytest.mark.parametrize(
    ("device", "cuda", "covered", "verdict"),
    [
        ("orin-nano", "12.6", False, "tegra-undocumented"),
        ("orin-nano", "13.2", False, "tegra-undocumented"),
        ("h100", "12.6", True, "sass-exact"),
        ("h100", "13.0", True, "sass-exact"),
        ("thor", "12.6", True, "rdc-jit-link"),
        ("thor", "13.0", True, "sass-exact"),
        ("xavier-nx", "12.6", False, "no-symbol"),
        ("gb10", "12.6", True, "rdc-jit-link"),
        ("sm_87", "12.6", False, "tegra-undocumented"),
        ("h100", "11.8", False, "cuda-major"),
    ],
)
def test_bitsandbytes(
    bitsandbytes: str, device: str, cuda: str, covered: bool, verdict: str
) -> None:
    report = audit([bitsandbytes], [device], cuda)
    finding = report.files[0].devices[0].finding
    assert (report.covered(device), finding.verdict) == (covered, verdict)
    assert report.files[0].without_gpu_code == 1


def test_orin_is_told_the_error_the_sources_and_what_speaks_against(bitsandbytes: str) -> None:
    report = audit([bitsandbytes], ["orin-nano"], "12.6")
    (file,) = report.files
    words = explain(file.devices[0].finding, file)
    assert words.error_text == "CUDA error 500 (cudaErrorSymbolNotFound): named symbol not found"
    assert any("1930" in each.url for each in words.sources)
    assert any("JetPack 7.2" in each.says for each in words.contrary)
    assert "pip install bitsanywhere" in words.fix
    assert "compute_87,code=sm_87" in words.fix
    assert "sm_75, sm_80, sm_90" in words.reason


def test_without_a_cuda_every_variant_counts(bitsandbytes: str) -> None:
    report = audit([bitsandbytes], ["thor"])
    (device,) = report.files[0].devices
    assert len(device.loaded) == 2
    assert device.finding.library.endswith("cuda126.so")
    assert device.finding.verdict == "rdc-jit-link"


def test_a_wheel_for_another_processor_is_no_objection(bitsandbytes: str, tmp_path: Path) -> None:
    other = tmp_path / "bitsandbytes-0.50.2-py3-none-manylinux_2_24_x86_64.whl"
    code = elf({".nv_fatbin": container(entry(90))}, machine=62)
    other.write_bytes(wheel({"bitsandbytes/lib.so": code}))
    assert audit([bitsandbytes, str(other)], ["thor"], "13.0").covered("thor")
    alone = audit([str(other)], ["thor"], "13.0")
    assert not alone.covered("thor")
    words = explain(alone.files[0].devices[0].finding, alone.files[0])
    assert words.error_text.endswith("x86_64.whl is not a supported wheel on this platform.")


def test_no_gpu_code_covers_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pure-1-py3-none-any.whl"
    path.write_bytes(wheel({"pure/x.py": b"", "pure/c.so": elf({".text": b"\0"})}))
    report = audit([str(path)], ["h100"])
    assert report.files[0].devices[0].finding.verdict == "no-gpu-code"
    assert not report.covered("h100")


def test_an_installed_package_reads_only_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "gpukit-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpukit\nVersion: 2.0\n")
    names = ("gpukit_cuda126.so", "gpukit_cuda130.so")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    (tmp_path / names[0]).write_bytes(elf({".nv_fatbin": container(entry(80))}))
    # would be an error if it were read
    (tmp_path / names[1]).write_bytes(b"\x7fELF")
    monkeypatch.syspath_prepend(tmp_path)
    file = audit_installed("gpukit", find_device("sm_87"), (12, 8))
    assert file is not None
    assert [each.path for each in file.libraries] == [names[0]]
    assert file.devices[0].finding.verdict == "tegra-undocumented"
    with pytest.raises(AuditError, match="cuda130"):
        audit_installed("gpukit", find_device("sm_87"), (13, 0))
    none = audit_installed("gpukit", find_device("sm_87"), (11, 8))
    assert none is not None
    assert none.devices[0].finding.verdict == "cuda-major"
    assert audit_installed("no-such-package-x", find_device("sm_87"), (12, 6)) is None


def test_bare_cubins_of_a_folder_are_one_library(tmp_path: Path) -> None:
    path = tmp_path / "kit-1-py3-none-any.whl"
    members = {f"kit/cubins/{arch}.cubin": cubin(arch) for arch in (80, 90, 100)}
    path.write_bytes(wheel({**members, "kit/one.cubin": cubin(120)}))
    report = audit([str(path)], ["h100"])
    (file,) = report.files
    assert [(each.path, each.sass) for each in file.libraries] == [
        ("kit/cubins/*", ("sm_80", "sm_90", "sm_100")),
        ("kit/one.cubin", ("sm_120",)),
    ]
    device = file.devices[0]
    assert [each.verdict for each in device.libraries] == ["sass-exact", "no-image"]


def test_more_libraries_than_any_package_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many-1-py3-none-any.whl"
    code = elf({".nv_fatbin": container(entry(80))})
    path.write_bytes(wheel({f"{number}.so": code for number in range(3)}))
    monkeypatch.setattr("bitsanywhere.arch.report.MAX_LIBRARIES", 2)
    with pytest.raises(AuditError, match="3 libraries with GPU code"):
        audit([str(path)])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("named symbol not found")
    with pytest.raises(AuditError, match="is no ELF or PE file"):
        audit([str(path)])


def test_devices_asked_for_twice_appear_once() -> None:
    report = audit([str(FIXTURES / "plain_sm80.so")], ["a100", "A100", "sm_80"])
    assert [each.finding.device.name for each in report.files[0].devices] == ["a100", "sm_80"]
    assert report.covered("a100")
    assert not report.covered("h100")


@pytest.mark.parametrize("text", ["", "12", "12.x", "9.2", "126", "12.6; rm"])
def test_malformed_cuda_versions(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no CUDA version"):
        parse_cuda(text)
    assert parse_cuda(" 12.6.85") == (12, 6)


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    """In a release pipeline nothing but this package has to be installed."""
    for name in ("torch", "numpy", "numba"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not for the audit')")
    source = Path(bitsanywhere.arch.__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bitsanywhere.cli", "audit"),
            *(str(FIXTURES / "plain_sm80.so"), "--device", "a100"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source)])},
    )
    assert done.returncode == 0, done.stderr
    assert "sass-exact" in done.stdout
