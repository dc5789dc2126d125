"""The word that is given at import if the installed bitsandbytes has no code for a GPU."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bitsanywhere.arch import places
from bitsanywhere.integrations import bitsandbytes_backend as backend
from bitsanywhere.integrations import peer_check

FIXTURES = Path(__file__).parents[1] / "arch" / "fixtures"
ORIN, H100, A10 = {87: "Orin"}, {90: "NVIDIA H100"}, {86: "NVIDIA A10"}
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lays fixtures out as an installed bitsandbytes that hides the real one."""

    def lay_out(*libraries: tuple[str, str], version: str = "0.50.2") -> Path:
        package, about = tmp_path / "bitsandbytes", tmp_path / f"bitsandbytes-{version}.dist-info"
        package.mkdir()
        about.mkdir()
        for fixture, cuda in libraries:
            shutil.copy(FIXTURES / fixture, package / f"libbitsandbytes_cuda{cuda}.so")
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: bitsandbytes\nVersion: {version}\n"
        )
        names = [f"bitsandbytes/{each.name},," for each in package.iterdir()]
        (about / "RECORD").write_text("\n".join([f"{about.name}/METADATA,,", *names]) + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        places.read_once.cache_clear()
        return package

    return lay_out


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CUDA 12.6 that sees one Orin."""
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 7))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Orin")
    monkeypatch.delenv(peer_check.OVERRIDE, raising=False)


@pytest.mark.parametrize(
    ("fixture", "gpus", "expected"),
    [
        ("rdc_sm80.so", ORIN, "CUDA error 500 (cudaErrorSymbolNotFound): named symbol not found"),
        ("rdc_sm80.so", H100, "named symbol not found"),
        ("plain_sm80.so", H100, "CUDA error 209 (cudaErrorNoKernelImageForDevice)"),
        ("plain_sm80.so", A10, ""),
        ("plain_sm87.so", ORIN, ""),
        ("rdc_sm80_ptx80.so", ORIN, ""),
    ],
)
def test_what_fails_is_what_the_audit_says(
    install: Install, fixture: str, gpus: dict[int, str], expected: str
) -> None:
    install((fixture, "130"))
    told = peer_check.why_not(gpus, None, "13.0")
    assert bool(told) is bool(expected)
    if expected:
        ((arch, name),) = gpus.items()
        assert expected in told
        assert f"bitsandbytes 0.50.2 is not expected to run on {name}" in told
        assert f"(compute capability {arch // 10}.{arch % 10})" in told
        assert "bitsanywhere serves its quantization, matrix product" in told


def test_several_gpus_are_told_of_once(install: Install) -> None:
    install(("plain_sm80.so", "126"))
    told = peer_check.why_not(ORIN | A10 | H100, None, "12.6")
    assert ("on Orin" in told, "on NVIDIA H100" in told, "A10" in told) == (True, True, False)
    assert told.count("bitsanywhere serves") == 1


def test_the_library_that_would_be_loaded_decides(install: Install) -> None:
    install(("plain_sm80.so", "126"), ("plain_sm87.so", "124"))
    assert "209" in peer_check.why_not(ORIN, None, "12.6")
    assert peer_check.why_not(ORIN, None, "12.4") == ""
    assert peer_check.why_not(ORIN, "124", "12.6") == ""
    assert "cannot open shared object file" in peer_check.why_not(ORIN, None, "13.0")


def test_nothing_is_said_of_what_is_not_known(install: Install) -> None:
    install(("plain_ptx75.so", "118"))
    assert peer_check.why_not(H100, None, "11.8") == "", "the driver may be newer than torch's CUDA"


def test_nothing_is_said_of_an_editable_installation(install: Install) -> None:
    install()
    assert peer_check.why_not(H100, None, "12.6") == ""


def test_nothing_is_said_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_check, "PEER", "no-such-package-anywhere")
    assert peer_check.why_not(H100, None, "12.6") == ""


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_the_bitsandbytes_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    if distribution("bitsandbytes").version != "0.50.2":
        pytest.skip("what is in its library was looked up for 0.50.2")
    assert "named symbol not found" in peer_check.why_not(ORIN, None, "12.6")
    assert peer_check.why_not(H100 | A10, None, "12.6") == ""


def test_one_warning(install: Install, orin: None) -> None:
    install(("rdc_sm80.so", "126"))
    with pytest.warns(UserWarning, match=r"run on Orin \(compute capability 8\.7\)") as caught:
        assert peer_check.warn_if_peer_cannot_run()
    assert len(caught) == 1


def test_no_warning_if_it_runs(install: Install, orin: None, recwarn) -> None:
    install(("plain_sm87.so", "126"))
    assert not peer_check.warn_if_peer_cannot_run()
    assert not recwarn.list


def test_a_damaged_library_is_no_reason_to_fail(
    install: Install, orin: None, caplog: pytest.LogCaptureFixture, recwarn
) -> None:
    library = install(("rdc_sm80.so", "126")) / "libbitsandbytes_cuda126.so"
    library.write_bytes(library.read_bytes()[:-200])
    with caplog.at_level(logging.INFO, "bitsanywhere"):
        assert not peer_check.warn_if_peer_cannot_run()
    assert not recwarn.list
    assert "could not tell whether bitsandbytes runs here" in caplog.text


def test_warnings_as_errors_do_not_break_the_import(
    install: Install, orin: None, caplog: pytest.LogCaptureFixture
) -> None:
    install(("rdc_sm80.so", "126"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peer_check.warn_if_peer_cannot_run()
    assert "named symbol not found" in caplog.text


def test_a_library_is_read_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    library = install(("plain_sm80.so", "126")) / "libbitsandbytes_cuda126.so"
    read = []
    original = places.read_library
    monkeypatch.setattr(places, "read_library", lambda *args: read.append(1) or original(*args))
    first = peer_check.why_not(ORIN | H100, None, "12.6")
    assert peer_check.why_not(ORIN | H100, None, "12.6") == first
    assert len(read) == 1
    shutil.copy(FIXTURES / "plain_sm87.so", library)
    os.utime(library, ns=(0, 1))
    assert "Orin" not in peer_check.why_not(ORIN | H100, None, "12.6")
    assert len(read) == 2


def test_without_a_gpu_nothing_is_even_imported() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from bitsanywhere.integrations import peer_check\n"
        "assert not peer_check.warn_if_peer_cannot_run()\n"
        "print([name for name in sys.modules if name.startswith('bitsanywhere.arch')])"
    )
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("useless", [False, True])
def test_kernels_without_code_count_as_not_there(
    monkeypatch: pytest.MonkeyPatch, useless: bool
) -> None:
    """A call that ours does not take must not reach a kernel that only raises."""
    asked: set[str] = set()
    given = {}
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_kept", [])
    monkeypatch.setattr(backend, "_is_defined", lambda name: True)
    monkeypatch.setattr(backend, "_keep_weights_unpacked", lambda: None)
    monkeypatch.setattr(backend, "warn_if_peer_cannot_run", lambda: useless)
    monkeypatch.setattr(backend, "peer_kernel", lambda name, device: asked.add(device))
    monkeypatch.setattr(
        backend, "override", lambda library, name, function, key: given.update({(name, key): 1})
    )
    backend.register()
    assert asked == ({"cpu"} if useless else {"cpu", "cuda"})
    assert len(given) == 2 * len(backend.TAKEN_OVER)
