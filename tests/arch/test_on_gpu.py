"""The verdicts against the truth: every fixture is loaded and launched on the GPU that is here."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bitsanywhere.arch.devices import of_arch
from bitsanywhere.arch.places import find, read
from bitsanywhere.arch.rules import ERRORS
from bitsanywhere.arch.verdict import judge

pytestmark = pytest.mark.gpu
FIXTURES = Path(__file__).parent / "fixtures"

# Loads a library and launches its kernel in a process of its own: errors stick to a process.
LAUNCH = """
import ctypes, json, sys
cudart = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
values = [ctypes.c_int() for _ in range(3)]
cudart.cudaDriverGetVersion(ctypes.byref(values[0]))
cudart.cudaDeviceGetAttribute(ctypes.byref(values[1]), 75, 0)
cudart.cudaDeviceGetAttribute(ctypes.byref(values[2]), 76, 0)
seen = {"driver": values[0].value, "arch": values[1].value * 10 + values[2].value}
if len(sys.argv) > 2:
    memory = ctypes.c_void_p()
    assert cudart.cudaMalloc(ctypes.byref(memory), 4096) == 0
    ctypes.CDLL(sys.argv[2]).launch(memory, 1024)
    seen["error"] = cudart.cudaGetLastError() or cudart.cudaDeviceSynchronize()
print(json.dumps(seen))
"""


@cache
def cudart() -> str:
    """A CUDA runtime library of this machine, or "" if there is none."""
    places = [
        *(place for each in sys.path for place in Path(each).glob("nvidia/*/lib/libcudart.so.*")),
        *Path("/usr/local").glob("cuda*/lib64/libcudart.so.*"),
    ]
    return str(max(places)) if places else ""


def launch(*paths: str) -> dict[str, int]:
    """Driver version, capability and, for a library, the error of its kernel."""
    command = [sys.executable, "-c", LAUNCH, cudart(), *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


@cache
def gpu() -> dict[str, int]:
    """The GPU, or a skip that says what is missing."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no CUDA driver on this machine")
    if platform.machine() != "x86_64":
        pytest.skip("the fixtures are x86_64 libraries")
    if not cudart():
        pytest.skip("no libcudart on this machine")
    return launch()


def verdict(path: Path) -> tuple[str, int]:
    """What the audit says of this GPU and driver: the verdict and the error number."""
    (place,) = find(str(path))
    with place.open() as (member,):
        library = read(member)
    version = gpu()["driver"]
    found = judge(library, of_arch(gpu()["arch"]), (version // 1000, version % 1000 // 10))
    return found.verdict, (ERRORS[found.error].code or 0) if found.error else 0


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.so")), ids=lambda path: path.name)
def test_the_verdict_is_what_happens(path: Path) -> None:
    gpu()
    _, expected = verdict(path)
    assert launch(str(path))["error"] == expected


@pytest.mark.parametrize("name", ["plain_ptx75.so", "rdc_sm80_ptx80.so"])
def test_ptx_of_a_future_version(name: str, tmp_path: Path) -> None:
    """The PTX says 9.9 in its text, and in the header that the audit reads."""
    gpu()
    data = (FIXTURES / name).read_bytes()
    text, header = b".version 9.0", b"\x40\0\0\0" + b"\0\0\x09\0"
    assert (data.count(text), data.count(header)) == (1, 1)
    made = tmp_path / name
    newer = data.replace(text, b".version 9.9")
    made.write_bytes(newer.replace(header, b"\x40\0\0\0" + b"\x09\0\x09\0"))
    assert verdict(made) == ("ptx-too-new", 222)
    assert launch(str(made))["error"] == 222
