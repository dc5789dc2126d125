"""Paged tensors: memory that CPU and GPU share, so that states may exceed the GPU's memory.

Where there is no such memory, ordinary memory of the device is used, and that is logged once:
integrated GPUs (Jetson) use the CPU's memory anyway, and Windows lets only one side at a time in.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any, Optional

import torch

from bitsanywhere.errors import InvalidArgumentError

logger = logging.getLogger("bitsanywhere")

FIRST_CUDA_DEVICE = torch.device("cuda", 0)


class GlobalPageManager:
    """Knows all paged tensors of the process that are alive. Get it with `get_instance`."""

    _instance: Optional[GlobalPageManager] = None

    def __init__(self):
        raise InvalidArgumentError(
            "GlobalPageManager() was called",
            "There is one instance in a process.",
            "Call GlobalPageManager.get_instance().",
        )

    def initialize(self) -> None:
        """Forgets all tensors, which stay as they are."""
        self._known: list[weakref.ref[torch.Tensor]] = []

    @classmethod
    def get_instance(cls) -> GlobalPageManager:
        """The instance of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    @property
    def paged_tensors(self) -> list[torch.Tensor]:
        """All paged tensors that are alive, in the order in which they were made."""
        return [tensor for known in self._known if (tensor := known()) is not None]

    def prefetch_all(self, to_cpu=False) -> None:
        """Asks for all paged tensors to be moved, the first made first.

        Args:
            to_cpu: to the host, instead of each to its device.
        """
        for tensor in self.paged_tensors:
            prefetch_tensor(tensor, to_cpu)

    def _add(self, tensor: torch.Tensor) -> None:
        self._known = [known for known in self._known if known() is not None]
        self._known.append(weakref.ref(tensor))


def _backend() -> Any:
    return importlib.import_module("bitsanywhere.backends.cuda.managed")


@cache
def _note(device: torch.device, reason: str) -> None:
    logger.warning("Paged tensors on %s are ordinary ones: %s.", device, reason)


def get_paged(*shape, dtype=torch.float32, device=FIRST_CUDA_DEVICE) -> torch.Tensor:
    """A paged tensor of any content.

    Args:
        shape: its lengths.
        device: the CUDA device that computes with it.

    Returns:
        A contiguous tensor of that device, with the attributes ``is_paged`` (False where the
        platform has no paged memory and it is an ordinary tensor) and ``page_deviceid``. Views of
        it do not have them.

    Raises:
        PagedMemoryError: GPU and host together have not that much memory left.
    """
    device = torch.device(device)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        reason = _backend().why_not(index)
    else:
        index, reason = None, "paging is between a GPU and the host"
    if reason is None:
        tensor = _backend().empty(shape, dtype, index)
    else:
        _note(device, reason)
        tensor = torch.empty(shape, dtype=dtype, device=device)
    tensor.is_paged = reason is None  # type: ignore[attr-defined]
    tensor.page_deviceid = index  # type: ignore[attr-defined]
    if reason is None:
        GlobalPageManager.get_instance()._add(tensor)
    return tensor


def prefetch_tensor(A: torch.Tensor, to_cpu=False) -> None:
    """Asks for a tensor from `get_paged` to be moved, in the order of the current stream.

    The call does not wait. For a tensor in ordinary memory it does nothing.

    Args:
        to_cpu: to the host, instead of to its device.

    Raises:
        InvalidArgumentError: the tensor is not from `get_paged`.
    """
    paged = getattr(A, "is_paged", None)
    if paged is None:
        raise InvalidArgumentError(
            f"prefetch_tensor: a tensor of shape {tuple(A.shape)} that is not paged",
            "Only tensors from get_paged can be moved; their views cannot.",
            "Make it with get_paged.",
        )
    if paged:
        _backend().prefetch(A, to_cpu)


def elementwise_func(func_name, A, B, value, prefetch=True) -> None:
    """Fills a tensor in place.

    Args:
        func_name: "fill" (with ``value``), "arange" (0, 1, 2, ... in row-major order) or "_mul"
            (with the elements of ``B``).
        A: any tensor; a paged one is moved to its device first.
        B: tensor of A's shape for "_mul", else None.
        prefetch: whether to move paged tensors.

    Raises:
        InvalidArgumentError: there is no such function, or ``B`` is missing.
    """
    if func_name not in ("fill", "arange", "_mul") or (func_name == "_mul" and B is None):
        raise InvalidArgumentError(
            f"elementwise_func: func_name is {func_name!r}, B is {type(B).__name__}",
            "Allowed are 'fill' and 'arange', and '_mul' with a tensor B.",
            "Plain torch operations work on paged tensors too.",
        )
    for tensor in (A, B):
        if prefetch and getattr(tensor, "is_paged", False):
            prefetch_tensor(tensor)
    if func_name == "fill":
        A.fill_(value)
    elif func_name == "arange":
        A.copy_(torch.arange(A.numel(), device=A.device).view(A.shape))
    else:
        A.mul_(B)


def fill(A, value, device=None, prefetch=True) -> None:
    """Sets all elements of a tensor to ``value``; ``device`` is that of ``A`` in any case."""
    elementwise_func("fill", A, None, value, prefetch)


def is_on_gpu(tensors: Iterable[Optional[torch.Tensor]]):
    """True if all tensors are on one GPU; None and paged tensors fit any.

    Raises:
        InvalidArgumentError: one is not on a GPU, or they are on several.
    """
    places = {t.device for t in tensors if t is not None and not getattr(t, "is_paged", False)}
    if len(places) > 1 or any(place.type != "cuda" for place in places):
        raise InvalidArgumentError(
            f"Tensors on {', '.join(sorted(map(str, places)))}",
            "All must be on one GPU.",
            "Move them with tensor.to(device).",
        )
    return True


def get_ptr(A: Optional[torch.Tensor]) -> Optional[ctypes.c_void_p]:
    """The address of a tensor's data, None for None."""
    return None if A is None else ctypes.c_void_p(A.data_ptr())
