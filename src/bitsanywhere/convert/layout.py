"""Where each tensor of the result lies: in which file, at which byte.

All sizes are known before anything is computed, with one exception: the JSON of a 4-bit state
holds a number of unknown length. So within a file the tensors of known size come first, the wide
dtypes before the narrow so that all are aligned, and the JSONs last; the header, written when all
is done, gets room for the longest JSONs there can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from bitsanywhere.checkpoint import STATE_PREFIX
from bitsanywhere.convert.hf_model import Job
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.safetensors_file import CODES, Entry, encode_header
from bitsanywhere.convert.sources import SINGLE_FILE, Stored
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE

SHARD_BYTES = 5_000_000_000
BLOCKSIZE = 64
LONGEST_STATE = 512


@dataclass(frozen=True)
class Spot:
    """A tensor of known size in a result file; ``position`` counts from the file's start."""

    shard: int
    entry: Entry
    position: int


@dataclass(frozen=True)
class Shard:
    """One result file.

    Attributes:
        name: its file name.
        head_bytes: room for the header, which is also where data starts.
        entries: its tensors of known size, by offset.
        states: names of its JSON tensors, which follow in this order.
    """

    name: str
    head_bytes: int
    entries: list[Entry]
    states: list[str]

    @property
    def known_bytes(self) -> int:
        """Bytes of header and tensors of known size."""
        return self.head_bytes + (self.entries[-1].stop if self.entries else 0)

    def most_bytes(self) -> int:
        """Bytes that the file has at most."""
        return self.known_bytes + LONGEST_STATE * len(self.states)

    def complete(self, states: Mapping[str, bytes]) -> list[Entry]:
        """All entries, the JSONs given."""
        entries = list(self.entries)
        end = entries[-1].stop if entries else 0
        for name in self.states:
            size = len(states[name])
            entries.append(Entry(name, "U8", (size,), end, end + size))
            end += size
        return entries


@dataclass(frozen=True)
class Layout:
    """All result files, and the spot of every tensor of known size."""

    shards: list[Shard]
    spots: dict[str, Spot]


def plan_layout(jobs: Iterable[Job], tensors: Mapping[str, Stored], options: Options) -> Layout:
    """Distributes the results over files of at most 5 GB, a tensor's statistics with it."""
    groups: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
    states: list[list[str]] = [[]]
    filled = 0
    for job in jobs:
        parts = results_of(job, tensors[job.name], options)
        size = sum(_bytes(dtype, shape) for _, dtype, shape in parts)
        if filled and filled + size > SHARD_BYTES:
            groups.append([])
            states.append([])
            filled = 0
        filled += size
        groups[-1] += parts
        if job.kept is None and options.quant_type != "int8":
            states[-1].append(f"{job.name}.{STATE_PREFIX}{options.quant_type}")
    shards, spots = [], {}
    for index, (group, own) in enumerate(zip(groups, states)):
        shard = _shard(_file_name(index, len(groups)), group, own)
        shards.append(shard)
        for entry in shard.entries:
            spots[entry.name] = Spot(index, entry, shard.head_bytes + entry.start)
    return Layout(shards, spots)


def results_of(
    job: Job, stored: Stored, options: Options
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of what a tensor becomes, the JSON of a 4-bit state aside."""
    name, shape = job.name, stored.shape
    if job.kept is not None:
        return [(name, job.dtype, shape)]
    if job.transposed:
        shape = shape[::-1]
    if options.quant_type == "int8":
        module = name.removesuffix("weight")
        return [
            (name, torch.int8, shape),
            (f"{module}SCB", torch.float32, shape[:1]),
            (f"{module}weight_format", torch.uint8, ()),
        ]
    elements = stored.rows * stored.columns
    blocks = -(-elements // BLOCKSIZE)
    parts = [
        (name, torch.uint8, ((elements + 1) // 2, 1)),
        (f"{name}.absmax", torch.uint8 if options.double_quant else torch.float32, (blocks,)),
        (f"{name}.quant_map", torch.float32, (16,)),
    ]
    if options.double_quant:
        outer = -(-blocks // NESTED_BLOCKSIZE)
        parts.append((f"{name}.nested_absmax", torch.float32, (outer,)))
        parts.append((f"{name}.nested_quant_map", torch.float32, (256,)))
    return parts


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _file_name(index: int, count: int) -> str:
    stem, suffix = SINGLE_FILE.split(".")
    return SINGLE_FILE if count == 1 else f"{stem}-{index + 1:05}-of-{count:05}.{suffix}"


def _shard(
    name: str, group: list[tuple[str, torch.dtype, tuple[int, ...]]], states: list[str]
) -> Shard:
    entries = []
    end = 0
    for tensor, dtype, shape in sorted(group, key=lambda part: -part[1].itemsize):
        size = _bytes(dtype, shape)
        entries.append(Entry(tensor, CODES[dtype], shape, end, end + size))
        end += size
    longest = Shard(name, 0, entries, states).complete(dict.fromkeys(states, bytes(LONGEST_STATE)))
    return Shard(name, len(encode_header(longest)), entries, states)
