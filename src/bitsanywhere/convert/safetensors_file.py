"""Headers of safetensors files, read as untrusted and written with room to spare.

A file is a little-endian uint64 N, N bytes of JSON that may end in spaces, and the data. The JSON
maps each name to its dtype, shape and data_offsets, which count from the first byte of data; the
tensors cover the data without gaps or overlaps. Source: the section "Format" of
https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bitsanywhere.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_BYTES = 1 << 60
MAX_DIMENSIONS = 16
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# In files of others there are more; their sizes are known so that the header can be checked.
ITEM_BYTES = {code: dtype.itemsize for code, dtype in DTYPES.items()} | {
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "U32": 4, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: ``dtype`` as the format spells it, ``start`` and ``stop`` in data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> tuple[list[Entry], int]:
    """The tensors of a file by ascending offset, and the position of the first byte of data.

    Raises:
        CheckpointError: if the file is truncated, or its header malformed, inconsistent, or longer
            than 100 MB.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is not a sound safetensors file", error.what, "Fetch the file again."
        ) from error


def _read(file: BinaryIO, size: int) -> tuple[list[Entry], int]:
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"its header shall have {length} bytes, the file has {size}")
    try:
        content = json.loads(file.read(length).decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError("its header is not a JSON object")
    content.pop("__metadata__", None)
    entries = sorted((_entry(*item) for item in content.items()), key=lambda e: (e.start, e.stop))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise CheckpointError(f"tensor {entry.name[:100]!r} leaves a gap or overlaps another")
        end = entry.stop
    if end != size - 8 - length:
        raise CheckpointError(f"its tensors have {end} bytes, its data {size - 8 - length}")
    return entries, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise CheckpointError("its header names a tensor twice")
    return content


def _entry(name: str, given: Any) -> Entry:
    shown = f"tensor {name[:100]!r}"
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{shown} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{shown} has the shape {str(shape)[:100]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{shown} has the data_offsets {str(offsets)[:100]}")
    wanted = ITEM_BYTES[dtype]
    for size in shape:
        wanted *= size
    if offsets[1] - offsets[0] != wanted:
        raise CheckpointError(f"{shown} needs {wanted} bytes, its data_offsets say {offsets}")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < MAX_BYTES for v in values)


def encode_header(entries: Iterable[Entry], room: int = 0) -> bytes:
    """What precedes the data: length and JSON, filled with spaces to a multiple of 8 bytes.

    Args:
        room: bytes that the result takes at least.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        content[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    size = max(room - 8, len(text) + -len(text) % 8)
    return size.to_bytes(8, "little") + text.ljust(size)
