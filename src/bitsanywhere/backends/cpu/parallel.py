"""Running a kernel on several threads.

A kernel takes tasks from a counter (its argument 0) until none is left, so any number of threads
may run it on the same arguments, in any order. They come from the OpenMP pool that torch itself
uses, through its plain C entry `GOMP_parallel`: a second pool would fight torch's for the
processors, and numba's own is neither reentrant nor safe after a fork. Without that entry (macOS,
Windows), plain Python threads do it; ctypes releases the GIL.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch

from bitsanywhere.backends.cpu.compiler import Function

_forked = False


def threads() -> int:
    """How many threads a kernel may use: torch's setting, and one in a forked child, where
    OpenMP's pool is gone."""
    return 1 if _forked else torch.get_num_threads()


def launch(function: Function, tasks: int, *words: int) -> None:
    """Runs a kernel until its tasks are done.

    Args:
        function: the kernel; it is passed a pointer to (0, *words) as int64.
        tasks: how many there are, a bound on the threads worth waking.
        words: addresses and sizes; what they point to must outlive the call.
    """
    arguments = (ctypes.c_int64 * (len(words) + 1))(0, *words)
    count = min(threads(), tasks)
    if count <= 1:
        function.call(ctypes.addressof(arguments))
    else:
        _team()(function, ctypes.addressof(arguments), count)


@lru_cache(maxsize=1)
def _team() -> Callable[[Function, int, int], None]:
    """What runs a kernel on `count` threads at once: (function, arguments, count)."""
    start = _openmp()
    if start is None:
        return _python_threads
    return lambda function, arguments, count: start(function.address, arguments, count, 0)


def _openmp() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel` of the OpenMP library that torch has loaded, or None."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/")}
    names = ("libgomp", "libiomp5", "libomp")
    found = [p for p in paths if os.path.basename(p).startswith(names)]
    inside = str(Path(str(torch.__file__)).parent)
    for path in sorted(found, key=lambda p: not p.startswith(inside)):
        try:
            start = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        start.restype = None
        return start
    return None


def _python_threads(function: Function, arguments: int, count: int) -> None:
    others = [_executor().submit(function.call, arguments) for _ in range(count - 1)]
    function.call(arguments)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="bitsanywhere")


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
