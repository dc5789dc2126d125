"""From a kernel's source to a launch on the device in front of us.

The hot path is `LoadedKernel.launch`; everything else happens once per kernel and device.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.cache import DiskCache, Image, cache_key
from bitsanywhere.backends.cuda.jit.driver import (
    WRONG_CONTEXT,
    Driver,
    DriverError,
    LaunchConfig,
    driver,
)
from bitsanywhere.backends.cuda.jit.nvrtc import CompilationError
from bitsanywhere.backends.cuda.jit.plan import Way, ways
from bitsanywhere.backends.cuda.jit.signature import coerce
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.errors import (
    BackendUnavailable,
    InvalidArgumentError,
    PackError,
    UnsupportedDeviceError,
)
from bitsanywhere.settings import settings
from bitsanywhere.targets import Target

if TYPE_CHECKING:
    from bitsanywhere.backends.cuda.jit.packs import InstalledPacks

_NULL = ctypes.c_void_p(0)
_MOST_BLOCKS = 2**31 - 1
_PARAM_BUFFER, _PARAM_BUFFER_BYTES = 1, 2


def _raw_current_stream(device_index: int) -> int:
    return torch.cuda.current_stream(device_index).cuda_stream


# The short form exists in CUDA builds of torch (2.5 to 2.13 at least): 0.1 us instead of 3.4.
current_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", _raw_current_stream
)


class _Arguments(threading.local):
    """A thread's own buffer of packed arguments, and the pointers by which the driver reads it."""

    def __init__(self, size: int) -> None:
        self.buffer = ctypes.create_string_buffer(max(size, 1))
        self._size = ctypes.c_size_t(size)
        self._extra = (ctypes.c_void_p * 5)(
            _PARAM_BUFFER,
            ctypes.addressof(self.buffer),
            _PARAM_BUFFER_BYTES,
            ctypes.addressof(self._size),
            None,
        )
        self.buffer_and_extra = self.buffer, ctypes.c_void_p(ctypes.addressof(self._extra))


class Bound(NamedTuple):
    """A kernel with a fixed grid; see `LoadedKernel.bind`.

    Attributes:
        pack: the arguments as the kernel takes them.
        launch: of a raw stream and what `pack` returned; returns at once.
    """

    pack: Callable[..., bytes]
    launch: Callable[[int, bytes], None]


class LoadedKernel:
    """A kernel on one device, ready to launch from any thread.

    Attributes:
        image: what was loaded: entry point, architecture, parameters.
        device_index: the device, as torch numbers it.
        way: how it was obtained, for `doctor`.
        layout: `struct` format of the parameters.
    """

    def __init__(self, image: Image, device_index: int, way: str, of_driver: Driver) -> None:
        self.image, self.device_index, self.way = image, device_index, way
        self._driver = of_driver
        self._function = of_driver.load(image.data, image.entry, device_index)
        self.layout = image.parameters
        self._layout = struct.Struct(self.layout)
        self._arguments = _Arguments(self._layout.size)

    def launch(
        self,
        grid: Sequence[int],
        block: int | Sequence[int],
        shared: int,
        stream: int,
        args: tuple[object, ...],
    ) -> None:
        """Launches the kernel; returns at once.

        Args:
            grid: one to three numbers of blocks, each at least 1.
            block: threads a block, one to three numbers.
            shared: dynamic shared memory, bytes a block; anything up to the chip's opt-in limit.
            stream: the raw stream, see `current_stream`.
            args: one value a parameter: `data_ptr()` of tensors, ints, floats, `bytes` for
                structures, or ctypes scalars (slower).

        Raises:
            InvalidArgumentError: the arguments do not fit the kernel's parameters, or the grid is
                too large.
            DriverError: the driver refuses the launch.
        """
        buffer, extra = self._arguments.buffer_and_extra
        try:
            self._layout.pack_into(buffer, 0, *args)
        except struct.error:
            self._layout.pack_into(buffer, 0, *coerce(self.image.parameters, args))
        dimensions = _dimensions(grid, block, shared)
        code = self._submit(dimensions, stream, extra)
        if code:
            self._failed(code, dimensions, stream, extra)

    def bind(
        self, grid: Sequence[int], block: int, shared: int, layout: str, overlap: bool = False
    ) -> Bound:
        """The kernel with a fixed grid, for launches that take a third of `launch`'s Python time.

        Args:
            grid, block, shared: as `launch` takes them.
            layout: `struct` format of the arguments; those of a kernel that takes one structure
                are its fields.
            overlap: let it begin, where the chip can and the code was compiled for such a one,
                before the kernel ahead of it has ended; it waits itself before it touches what may
                be in use.

        Raises:
            InvalidArgumentError: the layout is not as long as the kernel's parameters, or the grid
                is too large.
        """
        packing = struct.Struct(layout)
        if packing.size != self._layout.size:
            raise InvalidArgumentError(
                f"layout={layout!r} for {self.image.entry}",
                f"The kernel's parameters are {self.image.parameters!r}.",
            )
        dimensions = _dimensions(grid, block, shared)
        # Code for an older chip does not wait.
        waits = int(re.sub(r"\D", "", self.image.arch)) >= 90
        if overlap and waits and self._driver.overlaps(self.device_index):
            return Bound(packing.pack, self._overlapping(dimensions))
        arguments, function, start = self._arguments, self._function, self._driver.launch_kernel

        def launch(stream: int, packed: bytes) -> None:
            buffer, extra = arguments.buffer_and_extra
            buffer.raw = packed
            queue = ctypes.c_void_p(stream) if stream else _NULL
            code = start(function, *dimensions, queue, None, extra)
            if code:
                self._failed(code, dimensions, stream, extra)

        return Bound(packing.pack, launch)

    def _overlapping(self, dimensions: tuple[int, ...]) -> Callable[[int, bytes], None]:
        arguments, function, start = self._arguments, self._function, self._driver.launch_config

        @lru_cache(maxsize=64)
        def config(stream: int) -> Any:
            return ctypes.byref(LaunchConfig.overlapping(dimensions, stream))

        def launch(stream: int, packed: bytes) -> None:
            buffer, extra = arguments.buffer_and_extra
            buffer.raw = packed
            code = start(config(stream), function, None, extra)
            if code:
                self._failed(code, dimensions, stream, extra)

        return launch

    def _submit(self, dimensions: tuple[int, ...], stream: int, extra: ctypes.c_void_p) -> int:
        queue = ctypes.c_void_p(stream) if stream else _NULL
        return self._driver.launch_kernel(self._function, *dimensions, queue, None, extra)

    def _failed(
        self, code: int, dimensions: tuple[int, ...], stream: int, extra: ctypes.c_void_p
    ) -> None:
        """Tries once more if the context was wrong, and raises if that fails too."""
        if code in WRONG_CONTEXT:
            # Another device is current, or this thread has used none yet. Asking before each
            # launch would cost 0.3 us.
            with self._driver.current(self.device_index):
                code = self._submit(dimensions, stream, extra)
        if code:
            grid, block, shared = dimensions[:3], dimensions[3:6], dimensions[6]
            call = f"{self.image.entry}, grid {grid}, block {block}, shared {shared}"
            self._driver.check(f"cuLaunchKernel of {call}", code)


def _dimensions(grid: Sequence[int], block: int | Sequence[int], shared: int) -> tuple[int, ...]:
    """Grid and block in three dimensions each, and shared memory."""
    x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
    # ctypes would cut a larger number to 32 bits.
    if x | y | z > _MOST_BLOCKS:
        raise InvalidArgumentError(f"grid={grid}", "A grid has at most 2^31 - 1 blocks.")
    bx, by, bz = (block, 1, 1) if isinstance(block, int) else (*block, 1, 1)[:3]
    return x, y, z, bx, by, bz, shared


class Loader:
    """Finds a way to get each kernel onto a device: cache, NVRTC, PTX, kernel pack, in that order.

    Args:
        of_driver: the CUDA driver.
        find_nvrtc: returns the NVRTC to use, or raises BackendUnavailable.
        cache: where compiled kernels are kept.
        pack_dir: folder of the installed kernel packs.
        forced_arch: compile everything for that architecture, whatever the chip.
    """

    def __init__(
        self,
        of_driver: Driver,
        find_nvrtc: Callable[[], nvrtc.Nvrtc],
        cache: DiskCache,
        pack_dir: Path,
        forced_arch: str | None = None,
    ) -> None:
        self._driver, self._cache, self._pack_dir = of_driver, cache, pack_dir
        self._forced = forced_arch
        self._nvrtc: nvrtc.Nvrtc | None = None
        self._no_nvrtc = ""
        try:
            self._nvrtc = find_nvrtc()
        except BackendUnavailable as error:
            self._no_nvrtc = str(error)

    # The compiler and the packs take time to import, and most processes need neither.
    @cached_property
    def _packs(self) -> InstalledPacks:
        from bitsanywhere.backends.cuda.jit.packs import InstalledPacks

        return InstalledPacks(self._pack_dir)

    def load(self, src: KernelSource, device_index: int) -> LoadedKernel:
        """The kernel on the device, by the first way that works.

        Raises:
            UnsupportedDeviceError: no way works; says why, each.
        """
        major, minor = self._driver.capability(device_index)
        failures = [] if self._nvrtc else [f"NVRTC: {self._no_nvrtc}"]
        for way in self._ways(src, 10 * major + minor):
            try:
                image = self._obtain(src, way)
                return LoadedKernel(image, device_index, str(way), self._driver)
            except (CompilationError, DriverError, InvalidArgumentError, PackError) as error:
                failures.append(f"{way}: {error}")
        raise self._unsupported(src, device_index, failures)

    def prepare(self, src: KernelSource, device_index: int) -> None:
        """Compiles a kernel into the cache, if it must be compiled; `load` reports failures."""
        major, minor = self._driver.capability(device_index)
        for way in ways(10 * major + minor, self._nvrtc_archs(), forced=self._forced):
            try:
                self._obtain(src, way)
                return
            except (CompilationError, InvalidArgumentError):
                continue

    def _ways(self, src: KernelSource, chip: int) -> Iterator[Way]:
        yield from ways(chip, self._nvrtc_archs(), forced=self._forced)
        if self._forced is None:
            yield from ways(chip, pack_archs=self._packs.archs(src.digest()))

    def _nvrtc_archs(self) -> tuple[int, ...]:
        return self._nvrtc.archs if self._nvrtc else ()

    def _obtain(self, src: KernelSource, way: Way) -> Image:
        if way.source == "pack":
            return self._packs.image(src.digest(), way.arch)
        if self._nvrtc is None:
            raise CompilationError("There is no NVRTC.", self._no_nvrtc)
        key = cache_key(src.digest(), way.arch, self._nvrtc.version)
        image = self._cache.get(key)
        if image is None:
            from bitsanywhere.backends.cuda.jit.compiler import compile_source

            image = Image.of(compile_source(src, way.arch, nvrtc=self._nvrtc))
            self._cache.put(key, image)
        return image

    def _unsupported(
        self, src: KernelSource, device_index: int, failures: list[str]
    ) -> UnsupportedDeviceError:
        major, minor = self._driver.capability(device_index)
        cuda = self._driver.version
        extra = min(max(cuda[0], nvrtc.MAJORS[-1]), nvrtc.MAJORS[0])
        arch = f"sm_{major}{minor}"
        failures = [*failures, f"kernel packs: {self._packs.why_not(arch)}"]
        return UnsupportedDeviceError(
            f"The CUDA kernel {src.entry} cannot run on device {device_index}, "
            f"{self._driver.name(device_index)}, compute capability {major}.{minor}, "
            f"driver for CUDA {cuda[0]}.{cuda[1]}.",
            "Tried:\n" + "\n".join(f"- {failure}" for failure in failures),
            f"Install the compiler: pip install 'bitsanywhere[cuda{extra}]'\n"
            f"Or build the kernels on any other machine: bitsanywhere pack build --arch {arch} "
            "--out PACK\nand install them here: bitsanywhere pack install PACK",
        )


_kernels: dict[tuple[KernelSource, int], LoadedKernel] = {}
_lock = threading.Lock()


def get_kernel(src: KernelSource, target: Target, device_index: int) -> LoadedKernel:
    """The kernel on a device, loaded at the first call and then looked up.

    The look-up hashes `src`: on a hot path keep the result.

    Args:
        target: what the kernel was configured for. The code is made for the device itself.

    Raises:
        UnsupportedDeviceError: the kernel cannot run on the device.
        CacheError: the folder of compiled kernels is not safe to use.
    """
    kernel = _kernels.get((src, device_index))
    if kernel is None:
        with _lock:
            kernel = _kernels.get((src, device_index))
            if kernel is None:
                kernel = _loader().load(src, device_index)
                _kernels[src, device_index] = kernel
    return kernel


def compile_many(
    sources: Sequence[KernelSource], target: Target, device_index: int, progress: bool = True
) -> list[LoadedKernel]:
    """`get_kernel` for many kernels, compiled in parallel.

    Args:
        progress: show a bar.

    Raises:
        UnsupportedDeviceError: a kernel cannot run on the device.
    """
    from tqdm.auto import tqdm

    wanted = [src for src in dict.fromkeys(sources) if (src, device_index) not in _kernels]
    if wanted:
        loader = _loader()
        with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
            prepared = pool.map(lambda src: loader.prepare(src, device_index), wanted)
            bar = tqdm(prepared, "Compiling kernels", len(wanted), disable=not progress)
            for _ in bar:
                pass
    return [get_kernel(src, target, device_index) for src in sources]


@lru_cache(maxsize=1)
def _loader() -> Loader:
    chosen, of_driver = settings(), driver()
    cache = DiskCache(chosen.cache_dir, chosen.cache_bytes)
    return Loader(
        of_driver,
        lambda: find_nvrtc(cache, of_driver.version[0]),
        cache,
        chosen.pack_dir,
        chosen.forced_arch,
    )


def find_nvrtc(cache: DiskCache, highest_major: int) -> nvrtc.Nvrtc:
    """The newest NVRTC up to a CUDA version; the cache notes what it is, so that it is not loaded
    again until a kernel must be compiled."""
    known = cache.read_note("nvrtc")
    found = nvrtc.search(highest_major, known)
    if found.identity and known.get(found.path) != found.identity:
        cache.write_note("nvrtc", {found.path: found.identity})
    return found
