"""Two NVRTCs (the newest installed, and 12.6 as on JetPack 6.2), small sources, a fake driver."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest

from bitsanywhere.backends.cuda.jit import KernelSource, nvrtc
from bitsanywhere.backends.cuda.jit.driver import DriverError, LaunchConfig
from bitsanywhere.errors import BackendUnavailable

SOURCES = Path(__file__).parent / "sources"
REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def newest_nvrtc() -> nvrtc.Nvrtc:
    try:
        return nvrtc.find()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def nvrtc_12_6() -> nvrtc.Nvrtc:
    """From the folder NVRTC12, into which nvidia-cuda-nvrtc-cu12==12.6.* was installed."""
    folder = Path(os.environ.get("NVRTC12", REPOSITORY / "build" / "nvrtc12"))
    found = sorted(folder.glob("**/libnvrtc.so.12"))
    if not found:
        pytest.skip(f"NVRTC 12.6 is not in {folder}; `make nvrtc12` fetches it")
    return nvrtc.Nvrtc(found[0])


@pytest.fixture
def saxpy() -> KernelSource:
    return KernelSource("saxpy.cuh", "saxpy", (("FACTOR_BIAS", 0),), root=str(SOURCES))


@pytest.fixture
def fill() -> KernelSource:
    return KernelSource("saxpy.cuh", "fill", (("FACTOR_BIAS", 0),), root=str(SOURCES))


class FakeDriver:
    """Stands for `driver.Driver`: refuses what it is told to, and records launches.

    `launch_kernel` reads the packed arguments through the pointers that it is given, as the driver
    does.
    """

    version = (12, 6)

    def __init__(self, capability=(8, 7), refuse=lambda image: False, codes=()):
        self._capability, self._refuse, self._codes = capability, refuse, list(codes)
        self.loaded, self.launches, self.events, self.attributes = [], [], [], []
        self.configured = 0

    def capability(self, device_index):
        return self._capability

    def name(self, device_index):
        return "Orin"

    def load(self, image, entry, device_index):
        if self._refuse(image):
            raise DriverError("cuModuleLoadDataEx: error 209, no kernel image.", 209)
        self.loaded.append((image, entry, device_index))
        return ctypes.c_void_p(7)

    def overlaps(self, device_index):
        return self._capability >= (9, 0)

    def launch_config(self, config, function, parameters, extra):
        self.configured += 1
        config = LaunchConfig.from_address(ctypes.addressof(config._obj))
        found = [config.attributes[i] for i in range(config.attribute_count)]
        self.attributes += [(attribute.id, attribute.value) for attribute in found]
        stream = ctypes.c_void_p(config.stream)
        return self.launch_kernel(function, *config.dimensions, stream, parameters, extra)

    def launch_kernel(self, function, *rest):
        *dims, shared, stream, parameters, extra = rest
        assert function.value == 7
        assert parameters is None
        end, address, size_key, size, terminator = (ctypes.c_void_p * 5).from_address(extra.value)
        assert (end, size_key, terminator) == (1, 2, None)
        packed = ctypes.string_at(address, ctypes.c_size_t.from_address(size).value)
        self.launches.append((tuple(dims), shared, stream.value or 0, packed))
        return self._codes.pop(0) if self._codes else 0

    @contextmanager
    def current(self, device_index):
        self.events.append(("push", device_index))
        yield
        self.events.append(("pop", device_index))

    def check(self, function, code):
        if code:
            raise DriverError(f"{function}: error {code}", code)


@pytest.fixture
def fake_driver() -> type[FakeDriver]:
    return FakeDriver


@pytest.fixture
def cubin():
    """A function making a minimal cubin header for an architecture, with some content."""

    def make(arch: int, abi: int = 0x41, content: bytes = b"code") -> bytes:
        flags = arch << 8 if abi == 0x41 else arch
        header = bytearray(64)
        header[:8] = b"\x7fELF\x02\x01\x01" + bytes([abi])
        struct.pack_into("<H", header, 18, 190)
        struct.pack_into("<I", header, 48, flags | 0x06000000)
        return bytes(header) + content

    return make
