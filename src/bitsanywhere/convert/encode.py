"""The bytes of one result, computed a few rows at a time.

Blocks of the 4-bit formats run over the flattened weight, so rows are taken in groups that end
with a block. Nested statistics need the mean of all scales: those alone, a 32nd of a bf16 weight,
are held until its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bitsanywhere import ops
from bitsanywhere.checkpoint import STATE_PREFIX
from bitsanywhere.convert.hf_model import Job
from bitsanywhere.convert.layout import BLOCKSIZE
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.sources import Source
from bitsanywhere.errors import CheckpointError
from bitsanywhere.functional import get_4bit_type, quantize_blockwise
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.quant_state import QuantState

# At most so many elements are in work at a time, unless a group of rows that ends with a block has
# more.
SLICE_ELEMENTS = 1 << 22

# Takes a result's name, a position in bytes within it, and what belongs there.
Write = Callable[[str, int, torch.Tensor], None]


@dataclass(frozen=True)
class Weight:
    """One tensor of a source as the layer holds it: cast, transposed, on the device."""

    job: Job
    source: Source
    device: str

    @property
    def rows(self) -> int:
        """Rows, leading dimensions taken together."""
        stored = self.source.tensors[self.job.name]
        return stored.columns if self.job.transposed else stored.rows

    @property
    def columns(self) -> int:
        """Elements of a row."""
        stored = self.source.tensors[self.job.name]
        return stored.rows if self.job.transposed else stored.columns

    def slices(self, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """(index of the first row, rows) in turn.

        Args:
            multiple: every slice but the last has a multiple of so many rows.
        """
        most = SLICE_ELEMENTS // max(self.columns, 1) // multiple * multiple
        if self.job.transposed:
            # Rows of the layer are columns of the file, so all of it has to be read.
            whole = self.source.read(self.job.name, 0, self.columns).t()
        for start in range(0, self.rows, max(most, multiple)):
            stop = min(start + max(most, multiple), self.rows)
            if self.job.transposed:
                rows = whole[start:stop].contiguous()
            else:
                rows = self.source.read(self.job.name, start, stop)
            yield start, rows.to(self.job.dtype).to(self.device)


def encode(
    job: Job, source: Source, options: Options, write: Write, advance: Callable[[int], object]
) -> bytes | None:
    """Computes and writes all results of one tensor but the JSON of a 4-bit state.

    Args:
        write: receives the results piece by piece, on the CPU.
        advance: is told the share of the source's bytes that is done since the last time.

    Returns:
        The JSON of a 4-bit state, None where there is none.

    Raises:
        CheckpointError: if a weight to be quantized holds NaN or Inf.
    """
    weight = Weight(job, source, options.device)
    done = 0

    def write_rows(name: str, position: int, rows: torch.Tensor, first: int, count: int) -> None:
        nonlocal done
        write(name, position, rows)
        reached = source.tensors[job.name].file_bytes * (first + count) // max(weight.rows, 1)
        advance(reached - done)
        done = reached

    if job.kept is not None:
        for start, rows in weight.slices():
            position = start * weight.columns * rows.element_size()
            write_rows(job.name, position, rows, start, len(rows))
        return None
    if options.quant_type == "int8":
        return _encode_int8(weight, write, write_rows)
    return _encode_4bit(weight, options, write, write_rows)


WriteRows = Callable[[str, int, torch.Tensor, int, int], None]


def _encode_int8(weight: Weight, write: Write, write_rows: WriteRows) -> None:
    """LLM.int8(): codes, the largest magnitude of each row, and the format, which is 0 for rows.

    As in bitsandbytes, the weight is rounded to float16 first.
    """
    name = weight.job.name
    module = name.removesuffix("weight")
    for start, rows in weight.slices():
        codes, scales, _ = ops.int8_vectorwise_quant(rows.half(), 0.0)
        _require_finite(name, scales)
        write(f"{module}SCB", start * scales.element_size(), scales)
        write_rows(name, start * weight.columns, codes, start, len(rows))
    write(f"{module}weight_format", 0, torch.tensor(0, dtype=torch.uint8))


def _encode_4bit(weight: Weight, options: Options, write: Write, write_rows: WriteRows) -> bytes:
    """Codes and statistics of one weight; returns the JSON of its state."""
    name, elements = weight.job.name, weight.rows * weight.columns
    scales = torch.empty(-(-elements // BLOCKSIZE), dtype=torch.float32, device=options.device)
    for start, rows in weight.slices(BLOCKSIZE // math.gcd(weight.columns, BLOCKSIZE)):
        codes, part = ops.quantize_4bit(rows, BLOCKSIZE, options.quant_type, torch.uint8)
        _require_finite(name, part)
        first = start * weight.columns
        scales[first // BLOCKSIZE :][: len(part)] = part
        write_rows(name, first // 2, codes, start, len(rows))
    offset = nested = None
    if options.double_quant:
        offset = scales.mean()
        scales, nested = quantize_blockwise(scales - offset, blocksize=NESTED_BLOCKSIZE)
    state = QuantState(
        absmax=scales,
        shape=torch.Size((weight.rows, weight.columns)),
        code=get_4bit_type(options.quant_type, options.device),
        blocksize=BLOCKSIZE,
        quant_type=options.quant_type,
        dtype=weight.job.dtype,
        offset=offset,
        state2=nested,
    )
    tensors = state.as_dict(packed=True)
    content = tensors.pop(STATE_PREFIX + options.quant_type)
    for key, value in tensors.items():
        write(f"{name}.{key}", 0, value)
    return bytes(content.tolist())


def _require_finite(name: str, scales: torch.Tensor) -> None:
    """A scale is the largest magnitude, NaN if there is one, so that it tells about all."""
    if not scales.isfinite().all():
        raise CheckpointError(
            f"{name} holds NaN or Inf, or for int8 what float16 cannot hold",
            "A block with one of them cannot be quantized.",
            f"Leave the layer with --skip {name.removesuffix('.weight')}, or mend the checkpoint.",
        )
