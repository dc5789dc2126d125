"""Launching a loaded kernel.

The hot path is `LoadedKernel.launch` and `Bound`; everything else happens once per kernel.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from bitsanywhere.backends.cuda.jit.cache import Image
from bitsanywhere.backends.cuda.jit.driver import WRONG_CONTEXT, Driver, LaunchConfig
from bitsanywhere.backends.cuda.jit.signature import coerce
from bitsanywhere.errors import InvalidArgumentError

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
        overlap = overlap and waits and self._driver.overlaps(self.device_index)
        arguments, function, start = self._arguments, self._function, self._driver.launch_config

        @lru_cache(maxsize=64)
        def config(stream: int) -> Any:
            return ctypes.byref(LaunchConfig.of(dimensions, stream, overlap))

        def launch(stream: int, packed: bytes) -> None:
            buffer, extra = arguments.buffer_and_extra
            buffer.raw = packed
            if start is None:
                code = self._submit(dimensions, stream, extra)
            else:
                # 0.4 us less than by a dozen arguments.
                code = start(config(stream), function, None, extra)
            if code:
                self._failed(code, dimensions, stream, extra)

        return Bound(packing.pack, launch)

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
            self._driver.check(f"Launching {call}", code)


def _dimensions(grid: Sequence[int], block: int | Sequence[int], shared: int) -> tuple[int, ...]:
    """Grid and block in three dimensions each, and shared memory."""
    x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
    # ctypes would cut a larger number to 32 bits.
    if x | y | z > _MOST_BLOCKS:
        raise InvalidArgumentError(f"grid={grid}", "A grid has at most 2^31 - 1 blocks.")
    bx, by, bz = (block, 1, 1) if isinstance(block, int) else (*block, 1, 1)[:3]
    return x, y, z, bx, by, bz, shared
