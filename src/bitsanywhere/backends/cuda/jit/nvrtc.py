"""NVIDIA's run-time compiler, by ctypes.

Why ctypes and not `cuda-core` or `cuda-bindings`: importing those takes 160 to 340 ms and 65 to
110 ms (a warm start is to take under 50 ms in all), they choose the library themselves (`pack
build --nvrtc PATH` names one), and a dozen C functions that have not changed since CUDA 11 are all
that is needed, for CUDA 12.4 and 13 alike. ctypes releases the GIL while NVRTC works. Finding the
library where packages do not put it is left to `cuda-pathfinder`, if it is installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from bitsanywhere.errors import BackendUnavailable, BitsAnywhereError, InvalidArgumentError

MAJORS = (13, 12)


class CompilationError(BitsAnywhereError, RuntimeError):
    """NVRTC refused a kernel; the message holds its log."""


class Output(NamedTuple):
    """What one compilation produced; `cubin` is empty for a virtual architecture."""

    ptx: bytes
    cubin: bytes
    log: str


class Nvrtc:
    """One libnvrtc: 100 MB that are loaded only to be asked what they are, or to compile.

    Args:
        path: the library's file, or a name for the system's loader.
        known: what `identity` was of a library at that path, from an earlier process.

    Attributes:
        version: (major, minor) of CUDA.
        archs: compute capabilities it compiles for, ascending, as 10 * major + minor.

    Raises:
        InvalidArgumentError: it cannot be loaded or is no libnvrtc.
    """

    def __init__(self, path: str | os.PathLike[str], known: object = None) -> None:
        self.path = os.fspath(path)
        try:
            status = os.stat(self.path)
            self._file = [status.st_size, status.st_mtime_ns]
        except OSError:
            # A name that the loader knows the place of.
            self._file = None
        match known:
            case [file, [int(major), int(minor)], [int(), *_] as archs] if file == self._file:
                self.version, self.archs = (major, minor), tuple(archs)
            case _:
                self.version, self.archs = self._ask()

    @property
    def identity(self) -> list[object] | None:
        """Size and time of the file, version and architectures; None if it has no known place."""
        if self._file is None:
            return None
        return [self._file, list(self.version), list(self.archs)]

    @cached_property
    def _library(self) -> ctypes.CDLL:
        try:
            library = ctypes.CDLL(self.path)
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise InvalidArgumentError(
                f"{self.path} is not a libnvrtc that can be loaded here.", str(error)
            ) from error
        return library

    def _ask(self) -> tuple[tuple[int, int], tuple[int, ...]]:
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        archs = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", archs)
        return (major.value, minor.value), tuple(sorted(archs))

    def __repr__(self) -> str:
        return f"NVRTC {self.version[0]}.{self.version[1]} ({self.path})"

    def compile(
        self, name: str, text: str, headers: Mapping[str, str], options: Sequence[str]
    ) -> Output:
        """Compiles one translation unit; headers are given by content, no file is read.

        Raises:
            CompilationError: the source or an option is refused.
        """
        program = ctypes.c_void_p()
        names = [header.encode() for header in headers]
        texts = [header.encode() for header in headers.values()]
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            text.encode(),
            name.encode(),
            len(names),
            (ctypes.c_char_p * len(names))(*texts),
            (ctypes.c_char_p * len(names))(*names),
        )
        try:
            # Since 12.9 NVRTC keeps a cache of its own where there is a driver: unchecked, and what
            # comes from it comes without the log of ptxas.
            private = ["--no-cache"] * (self.version >= (12, 9))
            # Less of CUDA's own declarations, none of which kernels use: the same code, sooner.
            private += ["--minimal"] * (self.version >= (12, 6))
            flags = [option.encode() for option in (*options, *private)]
            array = (ctypes.c_char_p * len(flags))(*flags)
            failed = self._library.nvrtcCompileProgram(program, len(flags), array)
            log = self._get("ProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
            if failed:
                reason = self._library.nvrtcGetErrorString(failed).decode()
                raise CompilationError(
                    f"{self!r} cannot compile {name}: {reason}",
                    f"Options: {' '.join(options)}\n{log}",
                )
            return Output(self._get("PTX", program).rstrip(b"\0"), self._get("CUBIN", program), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _get(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(max(size.value, 1))
        if size.value:
            self._call(f"nvrtcGet{what}", program, data)
        return data.raw[: size.value]

    def _call(self, function: str, *arguments: object) -> None:
        result = getattr(self._library, function)(*arguments)
        if result:
            reason = self._library.nvrtcGetErrorString(result).decode()
            raise CompilationError(f"{function} of {self.path} failed: {reason}")


@lru_cache(maxsize=1)
def find() -> Nvrtc:
    """The newest NVRTC that is installed, as `search` finds it."""
    return search()


def search(highest_major: int | None = None, known: Mapping[str, object] | None = None) -> Nvrtc:
    """The newest NVRTC that is installed.

    Args:
        highest_major: the CUDA major version of the driver, whose code must not be newer than
            that; None for no bound.
        known: path -> `Nvrtc.identity`, from earlier processes.

    Raises:
        BackendUnavailable: none is installed; says where it was looked for.
    """
    tried: list[str] = []
    for major in MAJORS:
        if highest_major is not None and major > highest_major:
            continue
        for path in _candidates(major):
            try:
                library = Nvrtc(path, (known or {}).get(path))
            except InvalidArgumentError as error:
                tried.append(f"{path}: {error.why}")
                continue
            if library.version[0] == major:
                return library
            tried.append(f"{path}: is of CUDA {library.version[0]}, not {major}")
    if highest_major is not None and highest_major < MAJORS[-1]:
        raise BackendUnavailable(
            f"The driver supports CUDA {highest_major} only.",
            f"Kernels are compiled with CUDA {MAJORS[-1]} or later.",
            "Update the driver.",
        )
    newest = min(highest_major or MAJORS[0], MAJORS[0])
    raise BackendUnavailable(
        "No NVRTC (NVIDIA's run-time compiler) is installed.",
        "Tried: " + "; ".join(tried),
        f"pip install 'bitsanywhere[cuda{newest}]'",
    )


def _candidates(major: int) -> Iterator[str]:
    """Files and loader names to try for one CUDA major version, best first."""
    windows = sys.platform == "win32"
    name = f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"
    for package, folders in (("nvidia", ("*/lib", "*/bin", "*/bin/*")), ("torch", ("lib",))):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for folder in folders:
                yield from sorted(map(str, Path(place).glob(f"{folder}/{name}")))
    yield name
    yield from _pathfinder(major)
    if not windows:
        yield f"/usr/local/cuda-{major}/lib64/{name}"
        yield f"/usr/local/cuda/lib64/{name}"


def _pathfinder(major: int) -> Iterator[str]:
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return
    try:
        found = load_nvidia_dynamic_lib("nvrtc").abs_path
    except DynamicLibNotFoundError:
        return
    if found and re.search(rf"(so\.|64_){major}", found):
        yield found
