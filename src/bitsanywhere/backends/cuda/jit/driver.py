"""The CUDA driver, by ctypes: contexts, loading and launching.

A launch through a ctypes function without declared types, on prebuilt arguments, takes 5.7 us on an
H100 host, through `cuda-bindings` 5.2 us and through `cuda-core` 5.7 us, nearly all of it in the
driver; their imports take 65 ms and 160 ms, and neither has to be installed on a Jetson this way.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from bitsanywhere.errors import BackendUnavailable, BitsAnywhereError

# What cuLaunchKernel says of a function of another context than the current one, or where there is
# none: invalid context, invalid handle (measured on two H100, driver 580), context destroyed.
WRONG_CONTEXT = (201, 400, 709)
_MAX_DYNAMIC_SHARED = 8
_STATIC_SHARED = 1
_CAPTURE_MODE_RELAXED = 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _SHARED_OPTIN = 75, 76, 97
_JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES = 5, 6
_LOG_BYTES = 16384
_OVERLAPS = 6
# Since then the driver also captures overlapping launches in graphs.
_CAPTURES_OVERLAP = (12, 3)


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute with an integer as its value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_int * 15),
    )


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig: grid, block, shared memory, stream, attributes."""

    _fields_ = (
        ("dimensions", ctypes.c_uint * 7),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )

    @classmethod
    def of(cls, dimensions: tuple[int, ...], stream: int, overlap: bool) -> LaunchConfig:
        """For one kernel.

        Args:
            dimensions: grid, block, shared memory.
            overlap: it may begin before the one ahead of it in the stream has ended. Such a kernel
                waits (griddepcontrol.wait) before it touches what may be in use.
        """
        attribute = LaunchAttribute(_OVERLAPS, 0, 1)
        numbers = (ctypes.c_uint * 7)(*dimensions)
        return cls(numbers, stream or None, ctypes.pointer(attribute), int(overlap))


class DriverError(BitsAnywhereError, RuntimeError):
    """A call of the CUDA driver failed.

    Attributes:
        code: the CUresult.
    """

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


class Driver:
    """The loaded driver library.

    Raises:
        BackendUnavailable: there is none, or it cannot be initialised.
    """

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._library: Any = ctypes.CDLL(name)
        except OSError as error:
            raise BackendUnavailable(
                "There is no NVIDIA driver.", str(error), "Install the driver for the GPU."
            ) from error
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self.launch_kernel = self._library.cuLaunchKernel
        # Of a LaunchConfig, since CUDA 11.8.
        self.launch_config: Any = getattr(self._library, "cuLaunchKernelEx", None)
        version = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        # CUDA version that the driver supports; on Jetson the R-number says something else.
        self.version = (version.value // 1000, version.value % 1000 // 10)

    def capability(self, device_index: int) -> tuple[int, int]:
        """(major, minor) of a device, numbered as torch numbers them."""
        device, value = self._device(device_index), ctypes.c_int()
        numbers = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        return numbers[0], numbers[1]

    def overlaps(self, device_index: int) -> bool:
        """Whether kernels may be launched to overlap with the ones before: from Hopper on."""
        return self.version >= _CAPTURES_OVERLAP and self.capability(device_index) >= (9, 0)

    def name(self, device_index: int) -> str:
        """The device's product name."""
        buffer = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", buffer, 256, self._device(device_index))
        return buffer.value.decode(errors="replace")

    def context(self, device_index: int) -> ctypes.c_void_p:
        """The device's primary context, which torch uses too. Held until the process ends."""
        if device_index not in self._contexts:
            context = ctypes.c_void_p()
            self._call(
                "cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(device_index)
            )
            self._contexts[device_index] = context
        return self._contexts[device_index]

    @contextmanager
    def current(self, device_index: int) -> Iterator[None]:
        """Makes the device's primary context current in this thread, for a while."""
        self._call("cuCtxPushCurrent_v2", self.context(device_index))
        try:
            yield
        finally:
            self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def load(self, image: bytes, entry: str, device_index: int) -> ctypes.c_void_p:
        """Loads an image for one device at once (not lazily) and returns its function.

        Allowed while a stream is captured: loading touches no stream, so this thread's capture
        mode is relaxed meanwhile.

        Raises:
            DriverError: the driver refuses the image; holds the log of its PTX compiler.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with self.current(device_index), self.relaxed_capture():
            log = ctypes.create_string_buffer(_LOG_BYTES)
            options = (ctypes.c_int * 2)(_JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES)
            values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
            code = self._library.cuModuleLoadDataEx(
                ctypes.byref(module), ctypes.c_char_p(image), 2, options, values
            )
            if code:
                said = log.value.decode(errors="replace").strip()
                raise DriverError(
                    f"{self._reason('cuModuleLoadDataEx', code)} {said}".strip(), code
                )
            self._call("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
            # Since CUDA 12.4: load now, not at the first launch, which a capture may contain.
            if hasattr(self._library, "cuFuncLoad"):
                self._call("cuFuncLoad", function)
            self._allow_all_shared(function, device_index)
        return function

    def _allow_all_shared(self, function: ctypes.c_void_p, device_index: int) -> None:
        """Lets a function use all shared memory of the chip, beyond the 48 KiB that need no leave.

        It changes nothing for launches that use less.
        """
        most, static = ctypes.c_int(), ctypes.c_int()
        device = self._device(device_index)
        self._call("cuDeviceGetAttribute", ctypes.byref(most), _SHARED_OPTIN, device)
        self._call("cuFuncGetAttribute", ctypes.byref(static), _STATIC_SHARED, function)
        self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, most.value - static.value)

    def clear(self, address: int, size: int, stream: int, device_index: int) -> None:
        """Sets bytes on a device to zero, in the order of a stream."""
        with self.current(device_index):
            self._call(
                "cuMemsetD8Async", ctypes.c_void_p(address), 0, ctypes.c_size_t(size),
                ctypes.c_void_p(stream),
            )  # fmt: skip

    def capture_id(self, stream: int) -> int:
        """A number, not 0, of the graph capture that is under way on a stream."""
        status, number = ctypes.c_int(), ctypes.c_uint64()
        self._call(
            "cuStreamGetCaptureInfo_v2", ctypes.c_void_p(stream), ctypes.byref(status),
            ctypes.byref(number), None, None, None,
        )  # fmt: skip
        return number.value or 1

    def check(self, function: str, code: int) -> None:
        """Raises DriverError for a result other than success."""
        if code:
            raise DriverError(self._reason(function, code), code)

    @contextmanager
    def relaxed_capture(self) -> Iterator[None]:
        """Lets this thread do, while a stream is captured, what has nothing to do with it."""
        mode = ctypes.c_int(_CAPTURE_MODE_RELAXED)
        self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            yield
        finally:
            self._library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))

    def _device(self, index: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        return device

    def _call(self, function: str, *arguments: object) -> None:
        self.check(function, getattr(self._library, function)(*arguments))

    def _reason(self, function: str, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        return f"{function}: error {code}, {(text.value or b'unknown').decode()}."


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The driver of this process."""
    return Driver()
