"""The way of each kernel onto a device: compiled, cached, from a pack; once per process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.cache import DiskCache, Image, cache_key
from bitsanywhere.backends.cuda.jit.driver import Driver, DriverError, driver
from bitsanywhere.backends.cuda.jit.launch import LoadedKernel
from bitsanywhere.backends.cuda.jit.nvrtc import CompilationError
from bitsanywhere.backends.cuda.jit.plan import Way, ways
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.errors import (
    BackendUnavailable,
    BitsAnywhereError,
    InvalidArgumentError,
    PackError,
    UnsupportedDeviceError,
)
from bitsanywhere.settings import settings
from bitsanywhere.targets import Target

if TYPE_CHECKING:
    from bitsanywhere.backends.cuda.jit.packs import InstalledPacks

log = logging.getLogger(__name__)


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
        failures = [] if self._nvrtc else [f"NVRTC: {self._no_nvrtc}"]
        for way in self._ways(src, device_index):
            try:
                image = self._obtain(src, way)
                return LoadedKernel(image, device_index, str(way), self._driver)
            except (CompilationError, DriverError, InvalidArgumentError, PackError) as error:
                failures.append(f"{way}: {error}")
        raise self._unsupported(src, device_index, failures)

    def prepare(self, src: KernelSource, device_index: int) -> None:
        """Compiles a kernel into the cache, if it must be compiled; `load` reports failures."""
        with suppress(BitsAnywhereError):
            way = self._compiling(device_index)
            if way is not None:
                self._obtain(src, way)

    def must_compile(self, src: KernelSource, device_index: int) -> bool:
        """Whether `prepare` will take long."""
        way = self._compiling(device_index)
        return way is not None and self._key(src, way) not in self._cache

    def _compiling(self, device_index: int) -> Way | None:
        """How code for a device is made, if there is a compiler that can."""
        if self._nvrtc is None:
            return None
        found = ways(self._chip(device_index), self._nvrtc.archs, forced=self._forced)
        return found[0] if found else None

    def _ways(self, src: KernelSource, device_index: int) -> Iterator[Way]:
        way = self._compiling(device_index)
        if way is not None:
            yield way
        if self._forced is None:
            chip = self._chip(device_index)
            yield from ways(chip, pack_archs=self._packs.archs(src.digest()))

    def _chip(self, device_index: int) -> int:
        major, minor = self._driver.capability(device_index)
        return 10 * major + minor

    def _obtain(self, src: KernelSource, way: Way) -> Image:
        if way.source == "pack":
            return self._packs.image(src.digest(), way.arch)
        key = self._key(src, way)
        image = self._cache.get(key)
        if image is None:
            from bitsanywhere.backends.cuda.jit.compiler import compile_source

            image = Image.of(compile_source(src, way.arch, nvrtc=self._nvrtc))
            self._cache.put(key, image)
        return image

    def _key(self, src: KernelSource, way: Way) -> str:
        assert self._nvrtc is not None, "such a way needs it"
        return cache_key(src.digest(), way.arch, self._nvrtc.version)

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
# Set once `compile_ahead` is done with a kernel.
_ahead: dict[tuple[KernelSource, int], threading.Event] = {}
_ahead_lock = threading.Lock()


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
        _await(src, device_index)
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
    loader = _loader()
    missing = [src for src in dict.fromkeys(sources) if (src, device_index) not in _kernels]
    wanted = [src for src in missing if loader.must_compile(src, device_index)]

    def prepare(src: KernelSource) -> None:
        _await(src, device_index)
        loader.prepare(src, device_index)

    if wanted:
        from tqdm.auto import tqdm

        with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
            prepared = pool.map(prepare, wanted)
            bar = tqdm(prepared, "Compiling kernels", len(wanted), disable=not progress)
            for _ in bar:
                pass
    return [get_kernel(src, target, device_index) for src in sources]


def compile_ahead(sources: Sequence[KernelSource], device_index: int) -> None:
    """Begins to compile what is likely to be needed and not cached; `get_kernel` waits for it.

    On half of the cores at most; what finds none free is compiled when it is needed. A kernel that
    cannot be compiled is `get_kernel`'s to report. An exit of Python waits for what has begun.
    """
    loader = _loader()
    for src in sources:
        key = src, device_index
        if key in _kernels or not loader.must_compile(*key):
            continue
        with _ahead_lock:
            busy = sum(not done.is_set() for done in _ahead.values())
            if key in _ahead or busy >= (os.cpu_count() or 1) // 2:
                continue
            done = _ahead[key] = threading.Event()
        thread = threading.Thread(target=_prepare, args=(loader, key, done))
        try:
            thread.start()
        except RuntimeError as error:
            log.debug("%s is not compiled ahead: %s", src.entry, error)
        finally:
            if thread.ident is None:
                done.set()


def _prepare(loader: Loader, key: tuple[KernelSource, int], done: threading.Event) -> None:
    try:
        loader.prepare(*key)
    finally:
        done.set()


def _await(src: KernelSource, device_index: int) -> None:
    """Waits until `compile_ahead` is done with a kernel."""
    done = _ahead.get((src, device_index))
    if done is not None:
        done.wait()


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
