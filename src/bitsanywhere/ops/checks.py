"""Checks that several ops share; each raises an error that names what was given and is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.errors import BlocksizeError, DtypeError, InvalidArgumentError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def blocks(count: int, blocksize: int) -> int:
    """Number of blocks that hold ``count`` elements, the last one perhaps partly."""
    return -(-count // blocksize)


def check_float(op: str, name: str, dtype: torch.dtype) -> None:
    """Raises unless ``dtype`` is float32, float16 or bfloat16."""
    if dtype not in FLOATS:
        raise DtypeError(
            f"{op}: {name} is {dtype}",
            "Allowed are torch.float32, torch.float16, torch.bfloat16.",
            f"Convert it: {name}.to(torch.bfloat16).",
        )


def check_dtype(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises unless ``tensor`` has exactly ``dtype``."""
    if tensor.dtype != dtype:
        raise DtypeError(
            f"{op}: {name} is {tensor.dtype}",
            f"It must be {dtype}.",
            "Pass what the quantize function returned, unchanged.",
        )


def check_blocksize(op: str, blocksize: int, allowed: Sequence[int]) -> None:
    """Raises unless ``blocksize`` is one of ``allowed``."""
    if blocksize not in allowed:
        raise BlocksizeError(
            f"{op}: blocksize is {blocksize!r}",
            f"Allowed are {', '.join(map(str, allowed))}.",
            "Take one of these; 64 is usual for 4 bits, 256 for 8.",
        )


def check_numel(op: str, name: str, tensor: torch.Tensor, count: int, unit: str) -> None:
    """Raises unless ``tensor`` has exactly ``count`` elements."""
    if tensor.numel() != count:
        raise InvalidArgumentError(
            f"{op}: {name} has {tensor.numel()} elements of {tensor.dtype}",
            f"It must have {count} ({unit}).",
            "Pass statistics and codes that were made together, and the shape they were made from.",
        )


def check_same_device(op: str, first: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raises unless every tensor of ``others`` is on the device of ``first``."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise InvalidArgumentError(
                f"{op}: A is on {first.device}, {name} on {tensor.device}",
                "All tensors must be on one device.",
                f"Move it first: {name}.to({str(first.device)!r}).",
            )


def check_shape(op: str, shape: Sequence[int]) -> int:
    """Number of elements of ``shape``; raises if a dimension is negative."""
    count = 1
    for size in shape:
        if size < 0:
            raise InvalidArgumentError(
                f"{op}: shape is {tuple(shape)}",
                "Every dimension must be 0 or more.",
                "Pass the shape of the tensor that was quantized.",
            )
        count *= size
    return count


def check_packed(op: str, name: str, packed: torch.Tensor, count: int) -> None:
    """Raises unless ``packed`` holds ``count`` 4-bit codes, two a byte, in any storage dtype."""
    given = packed.numel() * packed.element_size()
    if given != (count + 1) // 2:
        raise InvalidArgumentError(
            f"{op}: {name} holds {given} bytes ({packed.dtype} {tuple(packed.shape)})",
            f"{count} 4-bit codes take {(count + 1) // 2} bytes.",
            "Pass codes and a state that were made together; the weight must be whole.",
        )


def as_bytes(packed: torch.Tensor) -> torch.Tensor:
    """``packed`` as a flat contiguous uint8 view (a copy only if it is not contiguous)."""
    flat = packed.contiguous().reshape(-1)
    return flat if flat.dtype == torch.uint8 else flat.view(torch.uint8)
